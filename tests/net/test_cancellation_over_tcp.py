"""Over sockets, too, nothing is left behind wherever a caller is cancelled: no stream, no connection, no quota."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from owm.net import NetworkLimits
from owm.net.errors import DialFailed
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, ask, connect, echo, eventually, identity


async def test_streams_whose_opener_was_cancelled_are_gone_at_both_ends() -> None:
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS).running() as a,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as b,
    ):
        b.handle(ECHO, echo, max_streams=100)
        await connect(a, b)
        cut = 0
        for moment in range(40):
            with trio.move_on_after(moment * 0.0002) as scope:
                async with await a.open_stream(b.peer_id, ECHO) as stream:
                    for _ in range(5):
                        await stream.send(bytes(1000))
                        await stream.receive()
            cut += scope.cancelled_caught
        assert cut > 0
        await eventually(lambda: a.statistics().streams == b.statistics().streams == 0)
        assert await ask(a, b, b"still works") == b"still works"
        assert b.statistics().penalties == {}


async def test_dials_whose_caller_was_cancelled_leave_no_connection_half_open() -> None:
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS).running() as a,
        Libp2pNetwork(identity(2), limits=NetworkLimits(exempt_local=True, handshake_timeout=1.0)).running() as b,
    ):
        for moment in range(25):
            with trio.move_on_after(moment * 0.0005), suppress(DialFailed):
                await a.connect(b.peer_id, b.addresses)
            await trio.sleep(0.02)
            await eventually(lambda: b._admission._handshakes.total() == 0)
            await eventually(lambda: a.is_connected(b.peer_id) == b.is_connected(a.peer_id))
            await a.disconnect(b.peer_id)
            await eventually(lambda: a.statistics().connections == b.statistics().connections == 0)


@pytest.mark.slow
async def test_who_gives_up_waiting_for_its_turn_costs_the_others_nothing() -> None:
    limits = NetworkLimits(exempt_local=True, stream_rate=5.0, stream_burst=5.0)
    async with Libp2pNetwork(identity(1), limits=limits).running() as a, Libp2pNetwork(identity(2)).running() as b:
        b.handle(ECHO, echo, max_streams=100)
        await connect(a, b)
        for _ in range(5):
            assert await ask(a, b, b"quick") == b"quick"

        async def impatient() -> None:
            with trio.move_on_after(0.1):
                await ask(a, b, b"never")

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(impatient)
        began = trio.current_time()
        assert await ask(a, b, b"patient") == b"patient"
        assert trio.current_time() - began < 2, "and not a hundred turns of 0.2 s"
