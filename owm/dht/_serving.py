"""Answering the queries of other peers' streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from owm.dht._core import KademliaCore
from owm.dht._core_server import QueryRefused
from owm.dht._core_wire import MAX_MESSAGE, WireError, decode_message, encode_message
from owm.net import FrameStream, Network, Penalty, Stream
from owm.net.errors import ProtocolViolation, StreamReset

__all__ = ["QueryServer"]

_INBOUND_IDLE: Final = 120.0  # seconds after which a silent stream is closed


class QueryServer:
    """The handler of inbound streams. ``flush`` carries out what the core wants after each query."""

    def __init__(self, core: KademliaCore, network: Network, flush: Callable[[], None]) -> None:
        self._core = core
        self._network = network
        self._flush = flush

    async def serve(self, stream: Stream) -> None:
        """Answer the queries of one stream until it falls silent."""
        try:
            await self._serve(stream)
        except StreamReset:
            return  # the usual end: the peer has gone
        except ProtocolViolation as error:
            self._network.penalise(stream.remote, Penalty.LOW_TOLERANCE, f"kad-dht: {error}")
            stream.reset()

    async def _serve(self, stream: Stream) -> None:
        frames = FrameStream(stream, MAX_MESSAGE)
        peer = stream.remote
        connection = self._network.connection(peer)
        observed = connection.address if connection is not None else None
        greeted = False
        while True:
            data = None
            with trio.move_on_after(_INBOUND_IDLE):
                data = await frames.receive()
            if data is None:
                return
            now = trio.current_time()
            try:
                self._core.admit_query(bytes(peer), now)  # before a byte is read: reading costs more than refusing
                answer = self._core.receive_query(bytes(peer), decode_message(data), now, observed, admitted=True)
            except WireError as error:
                raise ProtocolViolation(str(error)) from error
            except QueryRefused as refused:
                if refused.blame:
                    excess = refused.blame == "excess"
                    penalty = Penalty.HIGH_TOLERANCE if excess else Penalty.MID_TOLERANCE
                    self._network.penalise(peer, penalty, f"kad-dht: {refused}")
                stream.reset()
                return
            self._flush()
            if answer is not None:
                if greeted:
                    answer.sender, answer.proof = None, b""
                greeted = True
                with trio.fail_after(_INBOUND_IDLE):
                    await frames.send(encode_message(answer))
