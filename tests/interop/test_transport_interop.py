"""Our transport beside go-libp2p's and js-libp2p's: each dials, is identified, pings, and moves 20 MB each way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from owm.identity import Identity, PeerId
from owm.net import Connection, Stream
from owm.net.errors import ProtocolNotSupported
from owm.net.libp2p import Libp2pNetwork
from tests.foreign import GoPeer, JsPeer, foreign_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing()),
]

ECHO = "/owm-test/echo/1"
IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"
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


async def ping(network: Libp2pNetwork, peer: PeerId) -> None:
    """Two beats on one stream, as the ping protocol asks for."""
    async with await network.open_stream(peer, PING) as stream:
        for _ in range(2):
            beat = os.urandom(32)
            await stream.send(beat)
            back = b""
            while len(back) < 32:
                back += await stream.receive(32 - len(back))
            assert back == beat


async def identified(network: Libp2pNetwork, peer: PeerId) -> Connection:
    """The connection with a peer once it has said who it is."""
    while True:
        connection = network.connection(peer)
        if connection is not None and connection.protocols:
            return connection
        await trio.sleep(0.02)  # the foreign process decides when it answers


@pytest.mark.parametrize("dialler", ["theirs", "ours"])
async def test_js_and_we_identify_ping_and_open_streams_whoever_dialled(ours: Libp2pNetwork, dialler: str) -> None:
    async with JsPeer.running(echo=[ECHO]) as js:
        with trio.fail_after(40):
            us = str(ours.peer_id)
            if dialler == "theirs":
                reached = await js.do("connect", address=f"{ours.addresses[0]}/p2p/{us}")
                assert PeerId.parse(reached) == ours.peer_id
            else:
                assert await ours.connect(js.peer_id, [js.address]) == js.peer_id

            theirs = await identified(ours, js.peer_id)
            assert theirs.inbound is (dialler == "theirs")
            assert js.address in theirs.addresses
            assert {IDENTIFY, PING, ECHO} <= set(theirs.protocols)
            protocols: list[str] = []
            while ECHO not in protocols:
                await trio.sleep(0.05)
                protocols = await js.do("protocols", peer=us) if us in await js.do("peers") else []
            assert {IDENTIFY, PING} <= set(protocols)
            assert ours.addresses[0] in {a.split("/p2p/")[0] for a in await js.do("addresses", peer=us)}

            assert await js.do("ping", peer=us) < 5000
            await ping(ours, js.peer_id)
            counted = await js.do("echo", peer=us, protocol=ECHO, size=100_000)
            assert counted == {"sent": 100_000, "received": 100_000, "same": True}
            async with await ours.open_stream(js.peer_id, ECHO) as stream:
                assert await send_and_count(stream, 100_000) == 100_000


@pytest.mark.parametrize("dialler", ["theirs", "ours"])
async def test_go_and_we_identify_ping_and_open_streams_whoever_dialled(ours: Libp2pNetwork, dialler: str) -> None:
    async with GoPeer.running() as go, go.serving_echo(ECHO):
        with trio.fail_after(40):
            if dialler == "theirs":
                await go.connect(ours.peer_id, port_of(ours))
            else:
                assert await ours.connect(go.peer_id, [go.address]) == go.peer_id

            theirs = await identified(ours, go.peer_id)
            assert theirs.inbound is (dialler == "theirs")
            assert go.address in theirs.addresses
            assert {IDENTIFY, PING, "/ipfs/kad/1.0.0", ECHO} <= set(theirs.protocols)
            assert ours.peer_id in await go.peers()
            # Its daemon tells nobody what it knows of a peer's protocols. Of whom it did not dial, it has the address
            # that can be dialled from identify alone.
            while ours.addresses[0] not in await go.known_addresses(ours.peer_id):  # noqa: ASYNC110
                await trio.sleep(0.05)

            await ping(ours, go.peer_id)
            async with go.open_stream(ours.peer_id, PING) as stream:
                for _ in range(2):
                    beat = os.urandom(32)
                    await stream.stream.send_all(beat)
                    assert await stream.take(32) == beat
            async with go.open_stream(ours.peer_id, ECHO) as stream:
                await stream.stream.send_all(b"over here")
                assert await stream.take(9) == b"over here"
            async with await ours.open_stream(go.peer_id, ECHO) as stream:
                assert await send_and_count(stream, 100_000) == 100_000


async def test_a_protocol_that_we_do_not_speak_is_refused_and_the_connection_lives(ours: Libp2pNetwork) -> None:
    async with JsPeer.running() as js, GoPeer.running() as go:
        with trio.fail_after(40):
            await js.do("connect", address=f"{ours.addresses[0]}/p2p/{ours.peer_id}")
            await go.connect(ours.peer_id, port_of(ours))
            with pytest.raises(RuntimeError, match=r"(?i)protocol"):
                await js.do("echo", peer=str(ours.peer_id), protocol="/nobody/1", size=1)
            with pytest.raises(RuntimeError, match=r"(?i)protocol"):
                async with go.open_stream(ours.peer_id, "/nobody/1"):
                    pass
            for peer in (js, go):
                with pytest.raises(ProtocolNotSupported):
                    await ours.open_stream(peer.peer_id, "/nobody/1")
                await ping(ours, peer.peer_id)


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
