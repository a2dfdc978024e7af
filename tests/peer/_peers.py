"""Whole peers on a memory network in virtual time: every service and role is real, only the engine is a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Literal

import trio

from owm.config import LimitsSettings, NetworkSettings, NodeSettings, Settings, load_constitution
from owm.directory.joining import Lead
from owm.hardware import Hardware
from owm.identity import Identity
from owm.model import GenerateRequest
from owm.model.testing import StandInEngine
from owm.net import Link, MemoryHub
from owm.peer import Parts, Peer, limits_of
from owm.store import Store
from tests.tasks.world import TrioClock


def hub(seed: int = 1) -> MemoryHub:
    return MemoryHub(Random(seed), Link(latency=0.005))


def peer(
    hub: MemoryHub,
    name: str,
    roles: Sequence[str] = ("worker",),
    via: Sequence[str] = (),
    *,
    engine: StandInEngine | None = None,
    cache: Path | None = None,
    store: Path | None = None,
    bandwidth: bool = False,
    limits: LimitsSettings | None = None,
    hardware: Hardware = Hardware((), 16_000),
    tier_override: Literal["", "t0", "t1", "t2", "t3"] = "",
    skew: float = 0.0,
    secrets: str = "",
) -> Peer:
    """A peer of a devnet whose key follows from its name; ``via`` are the addresses that it is told.

    Two of one name are two processes with one key only if their ``secrets`` differ.
    """
    constitution = load_constitution("devnet")
    identity = Identity(Random(name).randbytes(32))
    settings = Settings(
        node=NodeSettings(roles=tuple(roles), tier_override=tier_override),
        network=NetworkSettings(measure_bandwidth=bandwidth),
        limits=limits or LimitsSettings(),
    )

    async def told() -> list[Lead]:
        return [Lead(None, address) for address in via]

    return Peer(
        Parts(
            identity=identity,
            settings=settings,
            constitution=constitution,
            network=hub.network(identity, limits=limits_of(settings, constitution)),
            store=Store(store, inline=True),
            clock=TrioClock(skew),
            random=Random(f"{name} random"),
            secrets=Random(f"{name} secrets{secrets}"),
            hardware=hardware,
            engine=(engine or StandInEngine()) if "worker" in roles else None,
            cache_path=cache,
            sources=[("settings", told)] if via else [],
        )
    )


class Running:
    """Peers that run, each in a scope of its own that ends it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[Peer, tuple[trio.CancelScope, trio.Event]] = {}

    async def start(self, started: Peer) -> Peer:
        ready, ended, scope = trio.Event(), trio.Event(), trio.CancelScope()

        async def run() -> None:
            with scope:
                async with started.running():
                    ready.set()
                    await trio.sleep_forever()
            ended.set()

        self._nursery.start_soon(run)
        self._scopes[started] = (scope, ended)
        await ready.wait()
        return started

    async def kill(self, dead: Peer) -> None:
        scope, ended = self._scopes.pop(dead)
        scope.cancel()
        await ended.wait()


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        yield Running(nursery)
        nursery.cancel_scope.cancel()


def address(of: Peer) -> str:
    return of.parts.network.addresses[0]


async def until(condition: Callable[[], bool], within: float = 60.0) -> float:
    """Wait for a condition; returns the virtual seconds that it took."""
    began = trio.current_time()
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)
    return trio.current_time() - began


async def ask(gateway: Peer, text: str = "hello", timeout: float = 30.0) -> tuple[str, str]:
    """The answer's text and the worker that gave it."""
    from owm.api import Answered, TokenText
    from owm.model import ChatMessage

    words, worker = [], ""
    request = GenerateRequest(messages=(ChatMessage("user", text),), max_tokens=6)
    async with gateway.backend.answer(request, timeout=timeout) as events:
        async for event in events:
            if isinstance(event, TokenText):
                words.append(event.text)
            elif isinstance(event, Answered):
                worker = event.worker
    return "".join(words), worker
