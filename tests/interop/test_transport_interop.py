"""Our transport beside go-libp2p's and js-libp2p's: each dials the other, identifies, pings, moves 20 MB each way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from owm.identity import Identity, PeerId
from owm.net import Stream
from owm.net.libp2p import Libp2pNetwork
from tests.foreign import GoPeer, JsPeer, foreign_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing()),
]

ECHO = "/owm-test/echo/1"
MANY = 20_000_000


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive(65536):
        await stream.send(chunk)


@pytest.fixture
async def ours() -> AsyncIterator[Libp2pNetwork]:
    network = Libp2pNetwork(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"])
    network.handle(ECHO, echo)
    async with network.running():
        yield network


def port_of(network: Libp2pNetwork) -> int:
    return int(network.addresses[0].rsplit("/", 1)[1])


async def send_and_count(stream: Stream, size: int) -> int:
    """Send ``size`` bytes to an echo and count what comes back; the content must be the same."""
    piece = bytes(i % 251 for i in range(65536))
    received = 0

    async def pump() -> None:
        for start in range(0, size, len(piece)):
            await stream.send(piece[: min(len(piece), size - start)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        while received < size:
            chunk = await stream.receive(65536)
            assert chunk, "the echo ended early"
            offset = received % len(piece)
            assert (piece + piece)[offset : offset + len(chunk)] == chunk
            received += len(chunk)
    return received


async def test_js_dials_us_identifies_and_pings(ours: Libp2pNetwork) -> None:
    async with JsPeer.running() as js:
        with trio.fail_after(30):
            reached = await js.do("connect", address=f"{ours.addresses[0]}/p2p/{ours.peer_id}")
            assert PeerId.parse(reached) == ours.peer_id
            assert await js.do("ping", peer=str(ours.peer_id)) < 1000
            protocols: list[str] = []
            while ECHO not in protocols:
                await trio.sleep(0.05)
                protocols = await js.do("protocols", peer=str(ours.peer_id))
            assert {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"} <= set(protocols)


async def test_we_dial_js_and_go_and_ping_them(ours: Libp2pNetwork) -> None:
    async with JsPeer.running() as js, GoPeer.running() as go:
        for peer in (js, go):
            with trio.fail_after(20):
                assert await ours.connect(peer.peer_id, [peer.address]) == peer.peer_id
                async with await ours.open_stream(peer.peer_id, "/ipfs/ping/1.0.0") as stream:
                    beat = os.urandom(32)
                    await stream.send(beat)
                    back = b""
                    while len(back) < 32:
                        back += await stream.receive(32 - len(back))
                    assert back == beat


async def test_go_dials_us(ours: Libp2pNetwork) -> None:
    async with GoPeer.running() as go:
        with trio.fail_after(20):
            await go.connect(ours.peer_id, port_of(ours))
            assert ours.peer_id in await go.peers()
            async with go.open_stream(ours.peer_id, ECHO) as stream:
                await stream.stream.send_all(b"over here")
                assert await stream.take(9) == b"over here"


async def test_20_mb_each_way_with_js(ours: Libp2pNetwork) -> None:
    async with JsPeer.running(echo=[ECHO]) as js:
        with trio.fail_after(120):
            await js.do("connect", address=f"{ours.addresses[0]}/p2p/{ours.peer_id}")
            counted = await js.do("echo", peer=str(ours.peer_id), protocol=ECHO, size=MANY)
            assert counted == {"sent": MANY, "received": MANY, "same": True}
            async with await ours.open_stream(js.peer_id, ECHO, bulk=True) as stream:
                assert await send_and_count(stream, MANY) == MANY


async def test_20_mb_each_way_with_go(ours: Libp2pNetwork) -> None:
    async with GoPeer.running() as go, go.serving_echo(ECHO):
        with trio.fail_after(120):
            await ours.connect(go.peer_id, [go.address])
            async with await ours.open_stream(go.peer_id, ECHO, bulk=True) as stream:
                assert await send_and_count(stream, MANY) == MANY
            async with go.open_stream(ours.peer_id, ECHO) as control:
                piece = bytes(i % 251 for i in range(50_000))

                async def pump() -> None:
                    for _ in range(MANY // len(piece)):
                        await control.stream.send_all(piece)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pump)
                    for _ in range(MANY // len(piece)):
                        assert await control.take(len(piece)) == piece
