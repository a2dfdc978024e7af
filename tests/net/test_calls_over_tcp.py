"""Calls keep their promises over sockets, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from owm.net import Call, Calls, Network
from owm.net.errors import RemoteError, RequestTimeout
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import LIMITS, PATIENCE, connect, eventually, identity

PROTOCOL = "/owm/test/calls/1"
pytestmark = pytest.mark.slow


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Network, Network, Calls, Calls]]:
    a, b = Libp2pNetwork(identity(1), limits=LIMITS), Libp2pNetwork(identity(2), limits=LIMITS)
    client, server = Calls(a, PROTOCOL), Calls(b, PROTOCOL)
    async with a.running(), b.running(), client.running(), server.running():
        await connect(a, b)
        yield a, b, client, server


async def test_many_calls_at_once_share_one_stream() -> None:
    async with pair() as (a, b, client, server):

        async def echo(call: Call) -> None:
            if call.request == b"fail":
                raise RemoteError("as asked")
            await call.reply(call.request)

        server.serve(echo)
        await client.request(b.peer_id, b"open the stream")
        before = a.statistics().streams
        answers: dict[int, bytes] = {}

        async def ask(number: int) -> None:
            answers[number] = await client.request(b.peer_id, Random(number).randbytes(number), timeout=PATIENCE)

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(ask, number)
        assert all(answers[number] == Random(number).randbytes(number) for number in range(500))
        with pytest.raises(RemoteError, match="as asked"):
            await client.request(b.peer_id, b"fail")
        assert a.statistics().streams <= before


async def test_small_calls_are_answered_while_a_bulk_call_runs() -> None:
    async with pair() as (_, b, client, server):

        async def serve(call: Call) -> None:
            for _ in range(160 if call.request == b"bulk" else 1):
                await call.reply(bytes(64 * 1024 if call.request == b"bulk" else 100))

        server.serve(serve)
        waits: list[float] = []
        finished = trio.Event()

        async def ask() -> None:
            while not finished.is_set():
                began = trio.current_time()
                await client.request(b.peer_id, b"small", timeout=PATIENCE)
                waits.append(trio.current_time() - began)
                await trio.sleep(0.001)

        received = 0
        with trio.fail_after(4 * PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                async with client.stream(b.peer_id, b"bulk", bulk=True) as incoming:
                    async for frame in incoming:
                        received += len(frame)
                finished.set()
        assert received == 10 << 20
        print("small-call latency", sorted(waits)[len(waits) // 2], len(waits))
        assert sorted(waits)[len(waits) // 2] < 0.25


async def test_leaving_a_call_and_a_deadline_both_stop_the_handler() -> None:
    async with pair() as (a, b, client, server):
        running = 0

        async def endless(call: Call) -> None:
            nonlocal running
            running += 1
            try:
                await call.reply(b"begun")
                await trio.sleep_forever()
            finally:
                running -= 1

        server.serve(endless)
        async with client.stream(b.peer_id, b"", timeout=PATIENCE) as incoming:
            assert await incoming.receive() == b"begun"
            assert running == 1
        left = trio.current_time()
        await eventually(lambda: running == 0)
        assert trio.current_time() - left < 1.0
        with pytest.raises(RequestTimeout):
            async with client.stream(b.peer_id, b"", timeout=0.2) as incoming:
                while await incoming.receive():
                    pass
        await eventually(lambda: running == 0)
        assert a.is_connected(b.peer_id)


async def test_calls_go_on_after_the_connection_was_lost_and_made_again() -> None:
    async with pair() as (a, b, client, server):

        async def echo(call: Call) -> None:
            await call.reply(call.request)

        server.serve(echo)
        for number in range(5):
            assert await client.request(b.peer_id, str(number).encode(), timeout=PATIENCE) == str(number).encode()
            await a.disconnect(b.peer_id)
            await eventually(lambda: not b.is_connected(a.peer_id))
            await connect(a, b)
