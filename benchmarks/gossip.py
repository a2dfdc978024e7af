"""Gossip over real sockets: ours beside go-libp2p's, js-libp2p's and py-libp2p's: ``python -m benchmarks.gossip``.

Everybody is on loopback, subscribed to one topic, with five dialled links each; messages have 300 bytes (ours: signed
records of about that size). A delivery is one message at one node that did not publish it. CPU is that of all nodes,
less what the same net uses while nothing is published. Ours and go-libp2p take turns, and the median turn counts: on a
shared machine one and the same run costs a tenth more or less from minute to minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from benchmarks import _gossip_rivals
from benchmarks._gossip_rivals import Load
from benchmarks._report import Result, main
from owm.compiled import compiled_folder
from scripts.compile_cores import compile_cores

_TURNS = 3


class _Process:
    """A process of our nodes, from outside."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    @classmethod
    @asynccontextmanager
    async def running(cls, count: int, first: int, path: str) -> AsyncIterator[_Process]:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "benchmarks._gossip_nodes", str(count), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.getcwd()]))},
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


async def _ours(nodes: int, processes: int, rates: list[float], seconds: float, path: str = "") -> list[Load]:
    """The net under each rate in turn, until one is too much for it. ``path``: a folder of compiled cores."""
    found: list[Load] = []
    share = nodes // processes
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(_Process.running(share, n * share, path)) for n in range(processes)]
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


def _compiled(quick: bool) -> str:
    """The folder of compiled cores; empty where there is no compiler, or where there is no time to use it."""
    folder = compiled_folder()
    if quick and not folder.exists():
        return ""
    try:
        return str(compile_cores())
    except SystemExit:
        return ""


def run(quick: bool) -> list[Result]:
    """All arms, one after the other; ``--quick``: 20 nodes, beside go-libp2p alone, and nothing up to its limit."""
    return [*_beside_go(quick), *_in_one_process(quick)]


def _beside_go(quick: bool) -> list[Result]:
    seconds, nodes = (4.0, 20) if quick else (15.0, 50)
    path = _compiled(quick)
    plain: list[Load] = []
    compiled: list[Load] = []
    go: list[Load] = []
    for _ in range(1 if quick else _TURNS):
        plain += trio.run(_ours, nodes, 2, [40.0], seconds)
        compiled += trio.run(_ours, nodes, 2, [40.0], seconds, path) if path else []
        go.append(_rival("go", nodes, 40.0, seconds))
    ours, theirs = _median(plain), _median(go)
    deliveries = len(ours["latencies"])
    results = [
        *_describe(f"{nodes} nodes in two processes, 40 a second", ours, nodes),
        Result("signature checks per delivery", "", ours["opened"] / deliveries, goal=1.0),
        Result("duplicates per delivery", "", ours["duplicates"] / deliveries),
        Result("bytes of a message", "", ours["bytes"]),
        Result("CPU per delivery, plain Python", "ms", _cost(ours), _cost(theirs), "go-libp2p", 0.35),
        Result("p99", "ms", 1000 * _p99(ours), 1000 * _p99(theirs), "go-libp2p"),
        Result("delivered", "", _delivered(ours, nodes), _delivered(theirs, nodes), "go-libp2p"),
    ]
    if compiled:
        fast = _median(compiled)
        results += [
            Result("CPU per delivery, compiled cores", "ms", _cost(fast), _cost(theirs), "go-libp2p", 0.35),
            Result("delivered, compiled cores", "", _delivered(fast, nodes), goal=1.0, relation=">="),
        ]
    return results if quick else [*results, _limit_beside_go(nodes)]


def _median(loads: list[Load]) -> Load:
    """The load of the turn whose cost is the median."""
    return sorted(loads, key=_cost)[len(loads) // 2]


def _in_one_process(quick: bool) -> list[Result]:
    """20 nodes in one process, beside libraries that cannot carry more; nothing with --quick."""
    if quick:
        return []
    one = trio.run(_ours, 20, 1, [40.0, 80.0, 160.0, 300.0, 400.0, 600.0, 800.0], 15.0)
    results = _describe("20 nodes in one process, 40 a second", one[0], 20)
    best = max((load["rate"] for load in one if _holds(load, 20)), default=0.0)
    for name, title, rate, rates in (
        ("library", "py-libp2p", 2.0, [2.0, 4.0, 8.0, 16.0]),
        ("js", "js-libp2p", 10.0, [10.0, 20.0, 40.0, 80.0]),
    ):
        theirs = _rival(name, 20, rate, 15.0)
        at = f"{title}, 20 nodes, {rate:g} a second"
        results += [
            Result("CPU per delivery", "ms", _cost(one[0]), _cost(theirs), at),
            Result("delivered", "", _delivered(one[0], 20), _delivered(theirs, 20), at),
            Result("highest rate that holds, 20 nodes", "messages/s", best, _saturation(name, 20, rates, 8.0), title),
        ]
    return results


def _limit_beside_go(nodes: int) -> Result:
    two = trio.run(_ours, nodes, 2, [80.0, 120.0, 160.0, 240.0, 320.0, 400.0], 15.0)
    best = max((load["rate"] for load in two if _holds(load, nodes)), default=0.0)
    theirs = _saturation("go", nodes, [60.0, 80.0, 120.0, 160.0, 240.0], 8.0) or 40.0
    return Result(f"highest rate that holds, {nodes} nodes", "messages/s", best, theirs, "go-libp2p")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rival"]:
        _, _, chosen, count, per_second, duration = sys.argv
        trio.run(getattr(_gossip_rivals, chosen), int(count), float(per_second), float(duration))
    else:
        main("gossip", run, parts={"go": _beside_go, "one": _in_one_process})
