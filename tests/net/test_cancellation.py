"""Wherever a caller is cancelled, nothing is left behind: no stream, no call, no task, no slot."""

from __future__ import annotations

import gc
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Call, Calls, Link, MemoryHub, NetworkLimits
from tests.net.conformance import ECHO, connect, echo, eventually, identity

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


@pytest.mark.slow
async def test_peers_that_come_and_go_five_thousand_times_leak_nothing(autojump_clock: MockClock) -> None:
    """250 peers connect and leave 20 times each: no slot, stream, task or object stays behind."""
    hub = MemoryHub(Random(1), Link(latency=0.001))
    visited = 0

    async def serve(call: Call) -> None:
        nonlocal visited
        visited += 1
        await call.reply(call.request)

    async def visit(number: int, times: int) -> None:
        for _ in range(times):
            network = hub.network(identity(number))
            calls = Calls(network, "/calls")
            async with network.running(), calls.running():
                await network.connect(home.peer_id, home.addresses)
                assert await calls.request(home.peer_id, b"hello") == b"hello"
            await trio.sleep(5)

    async def wave(times: int) -> tuple[int, int]:
        async with trio.open_nursery() as nursery:
            for number in range(10, 260):
                nursery.start_soon(visit, number, times)
        await eventually(lambda: not home.connections())
        gc.collect()
        return len(gc.get_objects()), trio.lowlevel.current_statistics().tasks_living

    limits = NetworkLimits(
        exempt_local=True, max_connections=300, max_inbound=300, high_water=280, low_water=260, reserved_protected=0
    )
    home = hub.network(identity(1), limits=limits)
    server = Calls(home, "/calls")
    async with home.running(), server.running():
        server.serve(serve)
        before = await wave(2)
        after = await wave(18)
    assert visited == 250 * 20
    statistics = home.statistics()
    assert (statistics.connections, statistics.inbound, statistics.streams, statistics.refused) == (0, 0, 0, 0)
    assert after[1] == before[1], "tasks leak"
    assert after[0] - before[0] < 2_000, f"{after[0] - before[0]} objects more after 4,500 visits"
