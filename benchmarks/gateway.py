"""A query through gateway and worker beside the engine called directly: ``python -m benchmarks.gateway``.

Both arms use one engine thread on core 0, the same file, slots and prompts; everything else shares the other core.
A peer without roles stands beside them; its memory and the gateway's are what their processes hold. Before that, a
thousand requests at once against workers with the stand-in engine, in process and over HTTP.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import trio

from benchmarks._crowd import crowd, share
from benchmarks._report import Result, main
from owm.cli._devnet import Devnet, Member, plan
from owm.cli._local import local_key
from owm.config import ModelSettings
from owm.model import ChatMessage, Done, GenerateRequest, Token, engine_of
from owm.peer import settle_memory

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
IDLE = "idle-1"  #: the peer without roles

Timing = tuple[float, int, float]  # seconds to the first token, tokens, seconds in all


def _pin(pid: int) -> None:
    """Core 0 for the engine; ours is the rest."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {cores[0]})


async def _timed(ask: Callable[[str], Awaitable[Timing]], repeats: int) -> tuple[list[float], float, list[float]]:
    """Sequential first-token times; tokens a second with eight streams at once; whole times of short answers."""
    await ask(PROMPTS[0])  # warm-up
    prompts = PROMPTS if repeats > 1 else PROMPTS[:4]  # a quick run has to end within a minute
    alone = [await ask(prompt) for _ in range(repeats) for prompt in prompts]
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
        idle = Member(IDLE, (), Path(folder) / IDLE)
        devnet = Devnet([*plan(Path(folder), 1, 1), idle])
        try:
            await devnet.start()
            await devnet.wait_usable()
            yield devnet, local_key(devnet.gateway.folder)
        finally:
            await devnet.stop()


async def _through_the_network(repeats: int) -> tuple[list[float], float, list[float], dict[str, float]]:
    """Times and rate as the others; and the memory that the processes hold at the end, in MB."""
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

            first, rate, whole = await _timed(ask, repeats)
        held = {
            member.name: psutil.Process(member.process.pid).memory_info().rss / 1e6
            for member in devnet.members
            if member.process is not None
        }
        return first, rate, whole, held


def run(quick: bool) -> list[Result]:
    """All arms, one after the other."""
    cores = sorted(os.sched_getaffinity(0))
    repeats = 1 if quick else 4
    settle_memory()  # as a peer does
    at_once = trio.run(partial(crowd, 200 if quick else 1000, 3))
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))  # and every process that we start, but for the engines
    direct_first, direct_rate, _ = trio.run(_direct, repeats)
    first, rate, whole, held = trio.run(_through_the_network, repeats)
    os.sched_setaffinity(0, set(cores))
    added = 1000 * (statistics.median(first) - statistics.median(direct_first))
    return [
        Result("added to the first token, p50", "ms", added, goal=50),
        Result(
            "first token, p50", "ms", 1000 * statistics.median(first), 1000 * statistics.median(direct_first), "engine"
        ),
        Result(f"throughput, {STREAMS} streams", "tokens/s", rate, direct_rate, "engine", 0.9, ">="),
        Result("short answers, p95 (PERF-01)", "s", share(whole, 0.95), goal=2.0),
        *at_once,
        Result("memory of an idle peer's process", "MB", held[IDLE], goal=120.0),
        Result("memory of a gateway's process after these", "MB", held["gateway-1"], goal=150.0),
    ]


if __name__ == "__main__":
    main("gateway", run)
