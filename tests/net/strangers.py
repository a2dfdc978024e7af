"""Peers that do as they like: an honest handshake, or none, and then any bytes at all on the real socket."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from owm.identity import Identity
from owm.net import Network
from owm.net._core_noise import NoiseSession
from owm.net._secure import Credentials, secure
from owm.net._transport import parse_endpoint

HEADER = struct.Struct(">BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    """A Yamux frame; ``length`` may lie."""
    return HEADER.pack(0, kind, flags, stream_id, length) + body


@asynccontextmanager
async def dial(network: Network) -> AsyncIterator[trio.SocketStream]:
    """A bare TCP connection to the first address of a network."""
    endpoint = parse_endpoint(network.addresses[0])
    assert endpoint is not None
    stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


class Stranger:
    """An authenticated peer whose frames are written by hand."""

    def __init__(self, stream: trio.SocketStream, session: NoiseSession) -> None:
        self.stream = stream
        self.session = session

    @classmethod
    @asynccontextmanager
    async def connected(cls, identity: Identity, network: Network) -> AsyncIterator[Stranger]:
        async with dial(network) as stream:
            secured = await secure(stream, Credentials.of(identity), initiator=True, expected=network.peer_id)
            yield cls(stream, secured.session)

    async def send(self, plain: bytes) -> None:
        await self.stream.send_all(self.session.seal(plain))

    async def is_cut(self, seconds: float = 5.0) -> bool:
        """Whether the other side ends the connection; what it says before is thrown away."""
        with trio.move_on_after(seconds):
            return await hangs_up(self.stream)
        return False


async def hangs_up(stream: trio.SocketStream) -> bool:
    """Wait until the other side closes."""
    try:
        while await stream.receive_some(65536):
            pass
    except trio.BrokenResourceError:
        pass
    return True
