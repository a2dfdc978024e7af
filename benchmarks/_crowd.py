"""A crowd of requests at once: through a gateway's requester in process, and over HTTP through its API server.

The workers, with the stand-in engine, and the HTTP clients are processes of their own. How late the gateway's event
loop runs is measured in the gateway itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks._report import Result
from benchmarks._standin import parts_of
from owm.api import Answered, AnswerEvent, KeyStore, Started, create_app, serve
from owm.config import ApiSettings
from owm.errors import OwmError
from owm.model import ChatMessage, GenerateRequest
from owm.peer import Peer
from owm.roles.gateway import NetworkBackend

__all__ = ["crowd", "share"]


async def crowd(count: int, workers: int) -> list[Result]:
    """Both arms, one after the other, against the same workers."""
    async with _gateway(workers) as gateway:
        in_process = await _in_process(gateway, count)
        over_http = await _over_http(gateway, count)
    return [*in_process, *over_http]


def share(values: list[float], part: float) -> float:
    """The value below which this part lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("inf")


@asynccontextmanager
async def _gateway(workers: int) -> AsyncIterator[Peer]:
    """A gateway in this process that knows so many workers."""
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
            yield gateway
        finally:
            for process in processes:
                process.kill()
                process.wait()


async def _in_process(gateway: Peer, count: int) -> list[Result]:
    dispatched: list[float] = []
    whole: list[float] = []

    async def one(number: int) -> None:
        began = time.perf_counter()
        request = GenerateRequest(messages=(ChatMessage("user", f"request {number}"),), max_tokens=12)
        first = None
        answered = False
        try:
            async with gateway.backend.answer(request, timeout=60) as events:
                async for event in events:
                    first = first or time.perf_counter() - began
                    answered = isinstance(event, Answered)
        except OwmError:
            return
        if answered and first is not None:
            dispatched.append(first)
            whole.append(time.perf_counter() - began)

    async with _lags() as lags, trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return _results(f"{count} at once", count, dispatched, whole, lags)


async def _over_http(gateway: Peer, count: int) -> list[Result]:
    settings = ApiSettings(port=0, max_concurrent=max(1000, count))
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyStore(Path(folder) / "keys.sqlite")
        key = keys.add("crowd", per_day=0).secret
        backend = _Watched(gateway.backend)
        async with serve(create_app(backend, settings, keys), settings, grace=5.0) as url:
            host, _, port = url.removeprefix("http://").partition(":")
            command = [sys.executable, "-m", "benchmarks._crowd_client", host, port, key, str(count)]
            async with _lags() as lags:
                done = await trio.run_process(command, capture_stdout=True)
        keys.close()
    found = json.loads(done.stdout)
    title = f"{count} at once over HTTP"
    first = Result(f"{title}: first token at the client p99", "s", share(found["first"], 0.99))
    return [*_results(title, count, backend.dispatched, found["whole"], lags), first]


class _Watched:
    """The gateway's backend, and how long each request took from the API to a worker that began."""

    def __init__(self, backend: NetworkBackend) -> None:
        self._backend = backend
        self.dispatched: list[float] = []
        self.embed = backend.embed
        self.models = backend.models
        self.nodes = backend.nodes
        self.statistics = backend.statistics

    @asynccontextmanager
    async def answer(self, request: GenerateRequest, *, timeout: float) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        began = time.perf_counter()
        async with self._backend.answer(request, timeout=timeout) as events:
            yield self._noted(events, began)

    async def _noted(self, events: AsyncIterator[AnswerEvent], began: float) -> AsyncIterator[AnswerEvent]:
        async for event in events:
            if isinstance(event, Started):
                self.dispatched.append(time.perf_counter() - began)
            yield event


def _results(title: str, count: int, first: list[float], whole: list[float], lags: list[float]) -> list[Result]:
    return [
        Result(f"{title}: served", "requests", len(whole), goal=count, relation=">="),
        Result(f"{title}: lost", "requests", count - len(whole), goal=0),
        Result(f"{title}: dispatch p99 (PERF-09)", "s", share(first, 0.99), goal=1.0),
        Result(f"{title}: answer p95", "s", share(whole, 0.95)),
        *(
            Result(f"{title}: event loop lag p{round(100 * part)}", "ms", 1000 * share(lags, part))
            for part in (0.5, 0.95, 0.99)
        ),
    ]


@asynccontextmanager
async def _lags() -> AsyncIterator[list[float]]:
    """How much later than asked for this process's event loop ran a timer, seconds, every 10 ms."""
    samples: list[float] = []

    async def sample() -> None:
        while True:
            began = time.perf_counter()
            await trio.sleep(0.01)
            samples.append(time.perf_counter() - began - 0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample)
        yield samples
        nursery.cancel_scope.cancel()
