"""A query through gateway and worker beside the engine called directly: ``python -m benchmarks.gateway``.

Both arms use one engine thread on core 0, the same file, slots and prompts; everything else shares the other core.
Then a thousand requests at once against workers with the stand-in engine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import trio

from benchmarks._report import Result, main
from benchmarks._standin import parts_of
from owm.cli._devnet import Devnet, plan
from owm.cli._local import local_key
from owm.config import ModelSettings
from owm.errors import OwmError
from owm.model import ChatMessage, Done, GenerateRequest, Token, engine_of
from owm.peer import Peer, settle_memory

PROMPTS = (
    "What is the capital of Norway?",
    "How many legs does a spider have?",
    "Name a metal that is liquid at room temperature.",
    "What do bees make?",
    "Which ocean is the largest?",
    "What is the boiling point of water?",
    "Who painted the Mona Lisa?",
    "What is the chemical symbol of gold?",
)
TOKENS = 48
STREAMS = 8

Timing = tuple[float, int, float]  # seconds to the first token, tokens, seconds in all


def _pin(pid: int) -> None:
    """Core 0 for the engine; ours is the rest."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {cores[0]})


async def _timed(ask: Callable[[str], Awaitable[Timing]], repeats: int) -> tuple[list[float], float, list[float]]:
    """Sequential first-token times; tokens a second with eight streams at once; whole times of short answers."""
    await ask(PROMPTS[0])  # warm-up
    alone = [await ask(prompt) for _ in range(repeats) for prompt in PROMPTS]
    done: list[Timing] = []

    async def client(number: int) -> None:
        for turn in range(repeats):
            done.append(await ask(PROMPTS[(number + turn) % len(PROMPTS)]))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(STREAMS):
            nursery.start_soon(client, number)
    rate = sum(tokens for _, tokens, _ in done) / (time.perf_counter() - began)
    return [first for first, _, _ in alone], rate, [whole for _, _, whole in alone]


async def _direct(repeats: int) -> tuple[list[float], float, list[float]]:
    engine = engine_of(ModelSettings())
    async with engine.running():
        pid = engine.statistics().pid
        assert pid is not None
        _pin(pid)

        async def ask(prompt: str) -> Timing:
            began = time.perf_counter()
            first, tokens = 0.0, 0
            request = GenerateRequest(messages=(ChatMessage("user", prompt),), max_tokens=TOKENS)
            async with engine.generate(request) as items:
                async for item in items:
                    if isinstance(item, Token) and item.text and not first:
                        first = time.perf_counter() - began
                    elif isinstance(item, Done):
                        tokens = item.completion_tokens
            return first, tokens, time.perf_counter() - began

        return await _timed(ask, repeats)


@asynccontextmanager
async def _devnet() -> AsyncIterator[tuple[Devnet, str]]:
    with tempfile.TemporaryDirectory() as folder:
        devnet = Devnet(plan(Path(folder), 1, 1))
        try:
            await devnet.start()
            await devnet.wait_usable()
            yield devnet, local_key(devnet.gateway.folder)
        finally:
            await devnet.stop()


async def _through_the_network(repeats: int) -> tuple[list[float], float, list[float]]:
    async with _devnet() as (devnet, key):
        for member in devnet.members:
            for child in psutil.Process(member.process.pid if member.process else 0).children():
                _pin(child.pid)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=devnet.gateway_url, headers=headers, timeout=120) as client:

            async def ask(prompt: str) -> Timing:
                began = time.perf_counter()
                first, tokens = 0.0, 0
                body = {
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": TOKENS,
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        if '"content":"' in line and '"content":""' not in line and not first:
                            first = time.perf_counter() - began
                        if '"completion_tokens":' in line:
                            tokens = int(line.split('"completion_tokens":')[1].split("}")[0].split(",")[0])
                return first, tokens, time.perf_counter() - began

            return await _timed(ask, repeats)


async def _lag(samples: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await trio.sleep(0.01)
        samples.append(time.perf_counter() - began - 0.01)


async def _crowd(count: int, workers: int) -> list[Result]:
    """``count`` requests at once through a gateway's requester to stand-in workers in processes of their own."""
    dispatched: list[float] = []
    whole: list[float] = []
    lags: list[float] = []
    failed = 0
    async with Peer(parts_of("gateway")).running() as gateway:
        address = gateway.parts.network.addresses[0]
        processes = [
            subprocess.Popen(  # noqa: ASYNC220 - started once, before anything is measured
                [sys.executable, "-m", "benchmarks._standin", address], stdout=subprocess.DEVNULL
            )
            for _ in range(workers)
        ]
        try:
            with trio.fail_after(60):
                while len(gateway.directory.peers()) < workers:  # noqa: ASYNC110
                    await trio.sleep(0.1)

            async def one(number: int) -> None:
                nonlocal failed
                began = time.perf_counter()
                request = GenerateRequest(messages=(ChatMessage("user", f"request {number}"),), max_tokens=12)
                first = None
                answered = False
                try:
                    async with gateway.backend.answer(request, timeout=60) as events:
                        async for event in events:
                            first = first or time.perf_counter() - began
                            answered = type(event).__name__ == "Answered"
                except OwmError:
                    answered = False
                if answered and first is not None:
                    dispatched.append(first)
                    whole.append(time.perf_counter() - began)
                else:
                    failed += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(_lag, lags)
                async with trio.open_nursery() as crowd:
                    for number in range(count):
                        crowd.start_soon(one, number)
                nursery.cancel_scope.cancel()
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return [
        Result(f"{count} requests at once: served", "requests", len(whole), goal=count, relation=">="),
        Result(f"{count} requests at once: lost", "requests", failed, goal=0),
        Result("dispatch p99, all at once (PERF-09)", "s", _share(dispatched, 0.99), goal=1.0),
        Result("answer p95, all at once", "s", _share(whole, 0.95)),
        Result("event loop lag p99", "ms", 1000 * _share(lags, 0.99)),
    ]


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def run(quick: bool) -> list[Result]:
    """All arms, one after the other."""
    cores = sorted(os.sched_getaffinity(0))
    repeats = 1 if quick else 4
    settle_memory()  # as a peer does
    crowd = trio.run(partial(_crowd, 200 if quick else 1000, 3))
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))  # and every process that we start, but for the engines
    direct_first, direct_rate, _ = trio.run(_direct, repeats)
    first, rate, whole = trio.run(_through_the_network, repeats)
    os.sched_setaffinity(0, set(cores))
    added = 1000 * (statistics.median(first) - statistics.median(direct_first))
    return [
        Result("added to the first token, p50", "ms", added, goal=50),
        Result(
            "first token, p50", "ms", 1000 * statistics.median(first), 1000 * statistics.median(direct_first), "engine"
        ),
        Result(f"throughput, {STREAMS} streams", "tokens/s", rate, direct_rate, "engine", 0.9, ">="),
        Result("short answers, p95 (PERF-01)", "s", _share(whole, 0.95), goal=2.0),
        *crowd,
    ]


if __name__ == "__main__":
    main("gateway", run)
