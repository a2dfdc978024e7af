"""Wherever a caller is cancelled, nothing is left behind: no stream, no call, no task, no slot."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Call, Calls, Link, MemoryHub
from tests.net.conformance import ECHO, connect, echo, identity

STEP = 0.007


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_call_cancelled_at_any_moment_leaves_nothing_behind(bulk: bool, autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.02, jitter=0.01))
    a, b = hub.network(identity(1)), hub.network(identity(2))
    client, server = Calls(a, "/calls", max_calls=2), Calls(b, "/calls", max_calls=2)
    running = 0

    async def work(call: Call) -> None:
        nonlocal running
        running += 1
        try:
            for _ in range(5):
                await call.reply(bytes(20_000))
                await trio.sleep(0.01)
        finally:
            running -= 1

    async with a.running(), b.running(), client.running(), server.running():
        server.serve(work)
        await connect(a, b)
        finished = 0
        for moment in range(50):
            with trio.move_on_after(moment * STEP):
                async with client.stream(b.peer_id, b"go", bulk=bulk) as incoming:
                    async for _ in incoming:
                        pass
                    finished += 1
            await trio.sleep(0.2)
            assert running == 0, f"a handler still runs after a cancellation at {moment * STEP:.3f} s"
            assert a.statistics().streams == b.statistics().streams <= (0 if bulk else 1)
        assert 0 < finished < 50
        async with client.stream(b.peer_id, b"still works") as incoming:
            assert len([frame async for frame in incoming]) == 5


async def test_opening_a_stream_cancelled_at_any_moment_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.02))
    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:
        b.handle(ECHO, echo)
        await connect(a, b)
        for moment in range(10):
            with trio.move_on_after(moment * STEP):
                async with await a.open_stream(b.peer_id, ECHO) as stream:
                    await stream.send(b"x")
            await trio.sleep(0.2)
            assert a.statistics().streams == b.statistics().streams == 0


async def test_connecting_cancelled_at_any_moment_leaves_no_half_open_connection(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.02))
    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:
        for moment in range(25):
            with trio.move_on_after(moment * STEP):
                await a.connect(b.peer_id, b.addresses)
            await trio.sleep(0.2)
            assert a.is_connected(b.peer_id) == b.is_connected(a.peer_id)
            await a.disconnect(b.peer_id)
            await trio.sleep(0.2)
            assert a.connections() == b.connections() == ()


async def test_a_cancelled_dial_does_not_strand_who_waits_for_the_same_peer(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.02))
    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:
        async with trio.open_nursery() as nursery:

            async def impatient() -> None:
                with trio.move_on_after(0.01):
                    await a.connect(b.peer_id, b.addresses)

            nursery.start_soon(impatient)
            nursery.start_soon(a.connect, b.peer_id, b.addresses)
        assert a.is_connected(b.peer_id)
