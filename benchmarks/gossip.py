"""Gossip over real sockets: ours beside go-libp2p's, js-libp2p's and py-libp2p's: ``python -m benchmarks.gossip``.

Everybody is on loopback, subscribed to one topic, with five dialled links each; messages have 300 bytes (ours: signed
records of about that size). A delivery is one message at one node that did not publish it. CPU is that of all nodes,
less what the same net uses while nothing is published.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from benchmarks import _gossip_rivals
from benchmarks._gossip_rivals import Load
from benchmarks._report import Result, main


class _Process:
    """A process of our nodes, from outside."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    @classmethod
    @asynccontextmanager
    async def running(cls, count: int, first: int) -> AsyncIterator[_Process]:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "benchmarks._gossip_nodes", str(count), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield cls(process)
        finally:
            process.kill()

    async def tell(self, *command: Any) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")

    async def answer(self) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            chunk = await self._process.stdout.receive_some(1 << 20)
            if not chunk:
                raise RuntimeError("a process of nodes ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


async def _ours(nodes: int, processes: int, rates: list[float], seconds: float) -> list[Load]:
    """The net under each rate in turn, until one is too much for it."""
    found: list[Load] = []
    share = nodes // processes
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(_Process.running(share, n * share)) for n in range(processes)]
        addresses = [address for member in members for address in await member.answer()]
        await _all(members, "join", addresses)
        await trio.sleep(5)
        idle = sum(await _all(members, "idle"))
        for rate in rates:
            parts = await _all(members, "run", rate / processes, seconds)
            load = {key: sum(part[key] for part in parts) for key in ("published", "cpu", "opened", "duplicates")}
            load["latencies"] = sorted(latency for part in parts for latency in part["latencies"])
            load |= {"idle": idle, "seconds": parts[0]["seconds"], "bytes": parts[0]["bytes"], "rate": rate}
            found.append(load)
            if not _holds(load, nodes):
                break
    return found


async def _all(members: list[_Process], *command: Any) -> list[Any]:
    for member in members:
        await member.tell(*command)
    return [await member.answer() for member in members]


def _delivered(load: Load, nodes: int) -> float:
    wanted = load["published"] * (nodes - 1)
    return len(load["latencies"]) / wanted if wanted else 0.0


def _p99(load: Load) -> float:
    latencies = load["latencies"]
    return latencies[int(0.99 * len(latencies))] if latencies else float("inf")


def _holds(load: Load, nodes: int) -> bool:
    return _delivered(load, nodes) >= 0.999 and _p99(load) < 0.5


def _cost(load: Load) -> float:
    """Milliseconds of CPU per delivery."""
    return 1000 * (load["cpu"] - load["idle"] * load["seconds"]) / max(1, len(load["latencies"]))


def _rival(name: str, nodes: int, rate: float, seconds: float) -> Load:
    """In a process of its own, so that no arm inherits another's memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gossip", "--rival", name, str(nodes), str(rate), str(seconds)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{name} failed: {done.stderr[-1500:]}")
    load: Load = json.loads(lines[-1])
    return load


def _saturation(name: str, nodes: int, rates: list[float], seconds: float) -> float:
    """The highest rate that a rival carried."""
    best = 0.0
    for rate in rates:
        if not _holds(_rival(name, nodes, rate, seconds), nodes):
            break
        best = rate
    return best


def _describe(title: str, load: Load, nodes: int, *, strict: bool = True) -> list[Result]:
    return [
        Result(f"{title}: delivered", "", _delivered(load, nodes), goal=1.0 if strict else None, relation=">="),
        Result(f"{title}: p50", "ms", 1000 * load["latencies"][len(load["latencies"]) // 2]),
        Result(f"{title}: p99", "ms", 1000 * _p99(load), goal=500.0 if strict else None),
    ]


def run(quick: bool) -> list[Result]:
    """All arms, one after the other; ``--quick``: 20 nodes, without js-libp2p and without saturation."""
    seconds = 5.0 if quick else 15.0
    results: list[Result] = []
    one = trio.run(_ours, 20, 1, [40.0] if quick else [40.0, 80.0, 120.0, 160.0, 200.0, 300.0, 400.0], seconds)
    results += _describe("20 nodes in one process, 40 a second", one[0], 20)
    nodes = 20 if quick else 50
    two = trio.run(_ours, nodes, 2, [40.0] if quick else [40.0, 60.0, 80.0, 100.0, 140.0, 180.0], seconds)
    ours = two[0]
    results += _describe(f"{nodes} nodes in two processes, 40 a second", ours, nodes)
    deliveries = len(ours["latencies"])
    results += [
        Result("signature checks per delivery", "", ours["opened"] / deliveries, goal=1.0),
        Result("duplicates per delivery", "", ours["duplicates"] / deliveries),
        Result("bytes of a message", "", ours["bytes"]),
    ]
    go = _rival("go", nodes, 40.0, seconds)
    results += [
        Result("CPU per delivery", "ms", _cost(ours), _cost(go), "go-libp2p", 0.35),
        Result("p99", "ms", 1000 * _p99(ours), 1000 * _p99(go), "go-libp2p"),
        Result("delivered", "", _delivered(ours, nodes), _delivered(go, nodes), "go-libp2p"),
    ]
    library = _rival("library", 20, 2.0, seconds)
    results += [
        Result("CPU per delivery", "ms", _cost(one[0]), _cost(library), "py-libp2p, 20 nodes, 2 a second"),
        Result("delivered", "", _delivered(one[0], 20), _delivered(library, 20), "py-libp2p, 20 nodes, 2 a second"),
    ]
    if not quick:
        js = _rival("js", 20, 10.0, seconds)
        results += [
            Result("CPU per delivery", "ms", _cost(one[0]), _cost(js), "js-libp2p, 20 nodes, 10 a second"),
            Result("delivered", "", _delivered(one[0], 20), _delivered(js, 20), "js-libp2p, 20 nodes, 10 a second"),
        ]
        best = max((load["rate"] for load in two if _holds(load, nodes)), default=0.0)
        theirs = _saturation("go", nodes, [60.0, 80.0, 120.0], 8.0) or 40.0
        results.append(Result("highest rate that holds, 50 nodes", "messages/s", best, theirs, "go-libp2p"))
        best = max((load["rate"] for load in one if _holds(load, 20)), default=0.0)
        library_best = _saturation("library", 20, [2.0, 4.0, 8.0, 16.0], 8.0)
        results.append(Result("highest rate that holds, 20 nodes", "messages/s", best, library_best, "py-libp2p"))
        results.append(
            Result(
                "highest rate that holds, 20 nodes",
                "messages/s",
                best,
                _saturation("js", 20, [10.0, 20.0, 40.0], 8.0),
                "js-libp2p",
            )
        )
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rival"]:
        _, _, chosen, count, per_second, duration = sys.argv
        trio.run(getattr(_gossip_rivals, chosen), int(count), float(per_second), float(duration))
    else:
        main("gossip", run)
