"""A devnet of real processes to kill, and clients of its gateways."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import trio

from owm.cli._devnet import Devnet, Member, plan
from owm.cli._local import local_key
from owm.errors import TemporaryError
from scripts._kill_checks import TOKENS_BEFORE_KILL, Failed, expect

__all__ = ["Lab"]

QUESTION: Final = "Tell a long story about a lighthouse keeper and the sea."
MAX_TOKENS: Final = 64
_POLL: Final = 0.02
_METRIC: Final = re.compile(r"^(owm_\w+) (\S+)$", re.M)
_CACHE: Final = "peers.json"

Strike = Callable[[], Awaitable[None]]


class Lab:
    """One devnet; ``front`` is the gateway that is asked."""

    def __init__(self, folder: Path, *, gateways: int, workers: int, seed: int = 1) -> None:
        self.devnet = Devnet(plan(folder, workers, gateways))
        self.folder = folder
        self._killed: dict[str, float] = {}  # the process id of each worker's engine that was killed last
        self.random = Random(seed)  # noqa: S311 - chooses whom to try
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(120, connect=5), trust_env=False)

    @property
    def gateways(self) -> list[Member]:
        return [m for m in self.devnet.members if "gateway" in m.roles]

    @property
    def workers(self) -> list[Member]:
        return [m for m in self.devnet.members if "worker" in m.roles]

    @property
    def front(self) -> Member:
        """The gateway that is asked: the last one, so that the first may die."""
        return self.gateways[-1]

    # Life and death

    async def start(self) -> None:
        """Start all, and wait until everybody could find back from what they remember."""
        await self.devnet.start()
        await self.settle()
        with trio.fail_after(60):
            while not all((m.folder / _CACHE).exists() for m in self.devnet.members):  # noqa: ASYNC110
                await trio.sleep(0.2)

    async def stop(self) -> None:
        await self.client.aclose()
        await self.devnet.stop()

    async def settle(self, seconds: float = 90) -> None:
        """Until every worker is ready and the front holds a connection to each, under the worker's own id."""
        with trio.fail_after(seconds):
            while not (await self._ready() and await self._knows(self.front, "usable")):  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def wait_knows(self, gateway: Member, seconds: float = 45) -> None:
        """Until a gateway has heard of every worker, connected or not."""
        with trio.fail_after(seconds):
            while not await self._knows(gateway, "discovered", "connected", "usable"):  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def _ready(self) -> bool:
        try:
            for worker in self.workers:
                assert worker.peer is not None
                if worker.exit_code is not None:
                    raise Failed(f"{worker.name} ended: {worker.log_tail()[-500:]}")
                if (await self.client.get(f"{worker.peer.health_url}/readyz")).status_code != 200:
                    return False
                # A worker may need a moment to notice that its engine is gone.
                if (await self.numbers(worker)).get("owm_engine_pid") in (None, self._killed.get(worker.name)):
                    return False
        except httpx.HTTPError:
            return False
        return True

    async def _knows(self, gateway: Member, *states: str) -> bool:
        assert gateway.peer is not None
        try:
            peers = (await self.client.get(f"{gateway.peer.health_url}/local/peers")).json()
        except httpx.HTTPError:
            return False
        known = {row["peer_id"] for row in peers if row["state"] in states and "worker" in row["roles"]}
        return known.issuperset(w.peer.peer_id for w in self.workers if w.peer is not None)

    def kill_now(self, member: Member, pid: int | None = None) -> None:
        """SIGKILL the peer, or another process of it."""
        assert member.process is not None
        os.kill(pid or member.process.pid, signal.SIGKILL)
        if pid is None:
            member.process.wait(10)

    async def kill(self, worker: Member, victim: str) -> None:
        """SIGKILL a worker's engine, or the worker itself."""
        pid = (await self.numbers(worker)).get("owm_engine_pid")
        if pid is None:
            raise Failed(f"{worker.name} has no engine")
        self._killed[worker.name] = pid
        self.kill_now(worker, int(pid) if victim == "engine" else None)

    async def bring_back(self) -> None:
        """Start again who has ended, given no address: it must find back through the peers that it remembers."""
        for member in self.devnet.members:
            if member.exit_code is not None:
                await self.devnet.add(member, None)
        try:
            await self.settle()
        except trio.TooSlowError as error:
            raise Failed("a peer that was killed did not find back") from error

    async def newcomer(self, name: str, not_through: Member) -> Member:
        """Start a gateway with a new key, and give it one address out of what a peer that runs remembers."""
        running = [m for m in self.devnet.members if m.exit_code is None and m is not not_through]
        addresses = {a for m in running if m.peer is not None for a in m.peer.addresses}
        cached = [
            (member.name, address)
            for member in running
            for peer in json.loads((member.folder / _CACHE).read_bytes())["peers"]
            for address in peer["addresses"]
            if address in addresses
        ]
        expect(bool(cached), "nobody remembers a peer that runs")
        holder, through = self.random.choice(sorted(cached))
        member = Member(name, ("gateway",), self.folder / name)
        try:
            await self.devnet.add(member, through)
        except TemporaryError as error:
            raise Failed(f"a newcomer could not join through {through}, cached by {holder}: {error}") from error
        return member

    async def dismiss(self, member: Member) -> None:
        """Stop a peer in order, and forget it."""
        assert member.process is not None
        member.process.send_signal(signal.SIGTERM)
        with trio.move_on_after(20):
            while member.exit_code is None:  # noqa: ASYNC110
                await trio.sleep(_POLL)
        if member.exit_code is None:
            self.kill_now(member)
        self.devnet.members.remove(member)

    # Watching

    async def numbers(self, member: Member) -> dict[str, float]:
        """The gauges of a peer's ``/metrics``."""
        assert member.peer is not None
        text = (await self.client.get(f"{member.peer.health_url}/metrics")).text
        return {name: float(value) for name, value in _METRIC.findall(text)}

    async def generated(self) -> dict[str, float]:
        """How many tokens each worker's engine has generated so far."""
        return {w.name: (await self.numbers(w))["owm_engine_generated_tokens"] for w in self.workers}

    async def answering(self, before: dict[str, float], tokens: int = TOKENS_BEFORE_KILL) -> Member:
        """Wait for the worker that is busy and has generated so many tokens since ``before``."""
        with trio.fail_after(60):
            while True:
                for worker in self.workers:
                    now = await self.numbers(worker)
                    done = now["owm_engine_generated_tokens"] - before[worker.name]
                    if now["owm_worker_busy"] and done >= tokens:
                        expect(tokens > 0 or done == 0, "tokens had been generated before the kill")
                        return worker
                await trio.sleep(_POLL)

    # Asking

    def _headers(self, gateway: Member) -> dict[str, str]:
        return {"Authorization": f"Bearer {local_key(gateway.folder)}"}

    def long_question(self) -> str:
        """A new prompt each time, so long that reading it takes the engine a while before its first token."""
        words = ("keeper", "storm", "lamp", "ship", "harbour", "gull", "rope", "night")
        told = " ".join(self.random.choice(words) for _ in range(180))
        return f"{QUESTION} Use these words: {told}"

    async def ask(
        self, question: str = QUESTION, *, through: Member | None = None, tokens: int = MAX_TOKENS
    ) -> httpx.Response:
        """One query without a stream."""
        gateway = through or self.front
        assert gateway.peer is not None
        body = {"query": question, "max_tokens": tokens}
        return await self.client.post(f"{gateway.peer.api_url}/v1/query", json=body, headers=self._headers(gateway))

    async def stream(self, strike: Strike, question: str = QUESTION) -> tuple[int, list[tuple[str, Any]]]:
        """Status and all events of one streamed query; ``strike`` runs after the fifth token."""
        return await self._stream("/v1/query/stream", {"query": question, "max_tokens": MAX_TOKENS}, strike)

    async def chat(self, strike: Strike) -> tuple[int, list[tuple[str, Any]]]:
        """Status and all chunks of one stream in OpenAI's dialect; ``strike`` runs after the fifth piece of text."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": "", "messages": messages, "max_tokens": MAX_TOKENS, "stream": True}
        return await self._stream("/v1/chat/completions", body, strike)

    async def _stream(self, path: str, body: dict[str, Any], strike: Strike) -> tuple[int, list[tuple[str, Any]]]:
        front = self.front
        assert front.peer is not None
        events: list[tuple[str, Any]] = []
        tokens = 0
        url = f"{front.peer.api_url}{path}"
        async with self.client.stream("POST", url, json=body, headers=self._headers(front)) as response:
            if response.status_code != 200:
                return response.status_code, [("error", json.loads(await response.aread()))]
            async for event in _events(response.aiter_lines()):
                events.append(event)
                if _has_text(event[1]):
                    tokens += 1
                    if tokens == TOKENS_BEFORE_KILL:
                        await strike()
        return 200, events


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    name = "message"
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield name, data if data == "[DONE]" else json.loads(data)
            name = "message"


def _has_text(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    choices: Iterable[Any] = data.get("choices") or ()
    return bool(data.get("text")) or any(choice.get("delta", {}).get("content") for choice in choices)
