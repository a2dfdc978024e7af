"""Kills engines, workers and the first peer of a real devnet while answers are under way, again and again.

    python -m scripts.kill_tests --rounds 20

In each round the answering worker's engine, then the worker itself, is killed with SIGKILL after at least five tokens:
with a stream and without, while another worker lives, and with none. At the end the first peer dies.
Ends with 0 only if every answer was whole, or was one clear error where no worker was left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import trio

from owm.cli._devnet import Devnet, Member, plan
from owm.cli._local import local_key
from owm.cli._query import parse_events

QUESTION = "Tell a long story about a lighthouse keeper and the sea."
MAX_TOKENS = 160
TOKENS_BEFORE_KILL = 5


class Failed(Exception):
    """An expectation did not hold."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def engine_of(member: Member) -> psutil.Process:
    """The engine process of a worker: its child that uses the most memory."""
    assert member.process is not None
    children = psutil.Process(member.process.pid).children(recursive=True)
    expect(bool(children), f"{member.name} has no engine process")
    return max(children, key=lambda child: child.memory_info().rss)


def cpu_seconds(workers: list[Member]) -> dict[str, float]:
    found = {}
    for member in workers:
        times = engine_of(member).cpu_times()
        found[member.name] = times.user + times.system
    return found


def busiest(workers: list[Member], before: dict[str, float]) -> Member:
    """Who answers: the worker whose engine has computed most since ``before``."""
    now = cpu_seconds(workers)
    return max(workers, key=lambda member: now[member.name] - before[member.name])


def kill(member: Member, victim: str) -> None:
    pid = engine_of(member).pid if victim == "engine" else member.process.pid if member.process else 0
    os.kill(pid, signal.SIGKILL)
    if victim == "worker" and member.process is not None:
        member.process.wait(10)  # so that its exit code is there when the round looks for who died


class Lab:
    """The devnet and a client of its gateway."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet = devnet
        self.key = local_key(devnet.gateway.folder)

    @property
    def workers(self) -> list[Member]:
        return [m for m in self.devnet.members if "worker" in m.roles and m.exit_code is None]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def wait_for_workers(self, count: int, seconds: float = 60) -> None:
        """Until the gateway knows exactly so many workers, and all say that they are ready."""
        async with httpx.AsyncClient(timeout=5) as client:
            with trio.fail_after(seconds):
                while True:
                    response = await client.get(f"{self.devnet.gateway_url}/v1/network/stats")
                    if response.json().get("workers") == count and all(
                        [await is_ready(client, m) for m in self.workers]
                    ):
                        return
                    await trio.sleep(0.2)

    def stream(self, on_fifth: Callable[[], None]) -> list[tuple[str, Any]]:
        """All events of one streamed query; ``on_fifth`` runs after the fifth token."""
        body = {"query": QUESTION, "max_tokens": MAX_TOKENS}
        events: list[tuple[str, Any]] = []
        tokens = 0
        url = f"{self.devnet.gateway_url}/v1/query/stream"
        with httpx.stream("POST", url, json=body, headers=self.headers, timeout=120) as response:
            for event in parse_events(response.iter_lines()):
                events.append((event.event, json.loads(event.data)))
                if event.event == "token":
                    tokens += 1
                    if tokens == TOKENS_BEFORE_KILL:
                        on_fifth()
        return events

    def whole(self) -> httpx.Response:
        """One query without a stream."""
        body = {"query": QUESTION, "max_tokens": MAX_TOKENS}
        url = f"{self.devnet.gateway_url}/v1/query"
        return httpx.post(url, json=body, headers=self.headers, timeout=120)


async def is_ready(client: httpx.AsyncClient, member: Member) -> bool:
    """Whether the worker has joined and its engine has loaded its models."""
    try:
        engine_of(member)
        return member.peer is not None and (await client.get(f"{member.peer.health_url}/readyz")).status_code == 200
    except (Failed, psutil.Error, httpx.HTTPError):
        return False


def check_stream_after_kill(events: list[tuple[str, Any]]) -> None:
    """Exactly one restart, after the five tokens; what follows it is the whole answer and nothing else."""
    names = [name for name, _ in events]
    expect(names.count("restart") == 1, f"expected one restart, got {names.count('restart')}: {events[-1]}")
    expect(names.count("error") == 0 and names[-1] == "done", f"the stream ended with {events[-1]}")
    cut = names.index("restart")
    expect(cut >= TOKENS_BEFORE_KILL, "the restart came before five tokens")
    text = "".join(data["text"] for name, data in events[cut:] if name == "token")
    expect(bool(text) and text == events[-1][1]["answer"], "what follows the restart is not the answer")
    expect(events[-1][1]["attempts"] == 2, f"attempts: {events[-1][1]['attempts']}")


async def streamed(lab: Lab, victim: str) -> Member:
    workers = lab.workers
    before = cpu_seconds(workers)
    killed: list[Member] = []

    def strike() -> None:
        killed.append(busiest(workers, before))
        kill(killed[0], victim)

    check_stream_after_kill(await trio.to_thread.run_sync(lab.stream, strike))
    return killed[0]


async def silent(lab: Lab, victim: str) -> Member:
    """Not streamed: the client gets a whole answer and notices nothing."""
    workers = lab.workers
    before = cpu_seconds(workers)
    killed: list[Member] = []

    async def strike() -> None:
        with trio.fail_after(30):
            while max(cpu_seconds(workers)[m.name] - before[m.name] for m in workers) < 0.6:  # noqa: ASYNC110
                await trio.sleep(0.02)  # 0.6 s of computing is the prompt and well over five tokens
        killed.append(busiest(workers, before))
        kill(killed[0], victim)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(strike)
        response = await trio.to_thread.run_sync(lab.whole)
    expect(response.status_code == 200, f"{response.status_code}: {response.text}")
    expect(response.json()["attempts"] == 2 and bool(response.json()["answer"]), response.text)
    return killed[0]


async def alone(lab: Lab, victim: str) -> Member:
    """No other worker: one clear error, and nothing after it."""
    (worker,) = lab.workers
    events = await trio.to_thread.run_sync(lab.stream, partial(kill, worker, victim))
    names = [name for name, _ in events]
    if victim == "engine" and names[-1] == "done":  # its engine was back in time: then the answer must be whole
        check_stream_after_kill(events)
        return worker
    expect(names.count("error") == 1 and names[-1] == "error", f"expected one error at the end: {events[-1]}")
    expect(bool(events[-1][1].get("detail")), "the error says nothing")
    return worker


async def revive(lab: Lab, member: Member, count: int) -> None:
    if member.exit_code is not None:
        first = lab.devnet.gateway
        assert first.peer is not None
        await lab.devnet.add(member, first.peer.addresses[0])
    await lab.wait_for_workers(count)


async def rounds(folder: Path, count: int) -> int:
    """Run all; returns how many expectations failed."""
    failures = 0
    two, one = Devnet(plan(folder / "two", 2, 1)), Devnet(plan(folder / "one", 1, 1))
    for devnet, workers, cases in ((two, 2, (streamed, silent)), (one, 1, (alone,))):
        try:
            await devnet.start()
            await devnet.wait_usable()
            lab = Lab(devnet)
            await lab.wait_for_workers(workers)
            for number in range(count):
                for case in cases:
                    for victim in ("engine", "worker"):
                        started = time.monotonic()
                        try:
                            killed = await case(lab, victim)
                            verdict = "ok"
                        except Failed as error:
                            failures += 1
                            verdict = f"FAILED: {error}"
                            killed = lab.workers[0] if lab.workers else devnet.members[-1]
                        took = time.monotonic() - started
                        print(
                            f"{number + 1:>3} {case.__name__:<9} kill {victim:<7} {took:5.1f} s  {verdict}", flush=True
                        )
                        for member in devnet.members:
                            if "worker" in member.roles and member.exit_code is not None:
                                killed = member
                        await revive(lab, killed, workers)
        finally:
            await devnet.stop()
    return failures + await first_peer_dies(folder / "three")


async def first_peer_dies(folder: Path) -> int:
    """The first peer dies; the second gateway still answers, and a newcomer joins through a worker."""
    devnet = Devnet(plan(folder, 2, 2))
    try:
        await devnet.start()
        await devnet.wait_usable()
        await trio.sleep(5)  # long enough for the second gateway to have met the workers
        first = devnet.members[0]
        assert first.process is not None
        first.process.kill()
        first.process.wait()
        lab = Lab(devnet)
        response = await trio.to_thread.run_sync(lab.whole)
        expect(response.status_code == 200, f"after the first peer's death: {response.status_code} {response.text}")
        through = lab.workers[0].peer
        assert through is not None
        newcomer = Member("worker-new", ("worker",), folder / "worker-new")
        await devnet.add(newcomer, through.addresses[0])
        await lab.wait_for_workers(3)
        print("    the first peer's death: ok", flush=True)
    except (Failed, trio.TooSlowError) as error:
        print(f"    the first peer's death: FAILED: {error}", flush=True)
        return 1
    finally:
        await devnet.stop()
    return 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="owm-kill-") as folder:
        failures = trio.run(rounds, Path(folder), arguments.rounds)
    print("all held" if not failures else f"{failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
