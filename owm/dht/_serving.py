"""Answering the queries of other peers' streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from owm.dht._core import KademliaCore
from owm.dht._core_server import QueryRefused
from owm.dht._core_wire import MAX_MESSAGE, WireError, decode_message, encode_message
from owm.dht._sending import Sender, Spawn
from owm.net import Network, Penalty, Stream, pump_frames
from owm.net.errors import ProtocolViolation, StreamReset

__all__ = ["QueryServer"]

_INBOUND_IDLE: Final = 120.0  # seconds after which a silent stream is closed
_UNREAD: Final = 64 * 1024  # bytes of answers that a peer does not take, beyond what the stream itself holds


class QueryServer:
    """The handler of inbound streams.

    Args:
        flush: carries out what the core wants after each query.
        spawn: starts a task.
    """

    def __init__(self, core: KademliaCore, network: Network, flush: Callable[[], None], spawn: Spawn) -> None:
        self._core = core
        self._network = network
        self._flush = flush
        self._spawn = spawn

    async def serve(self, stream: Stream) -> None:
        """Answer the queries of one stream until it falls silent."""
        try:
            await self._serve(stream)
        except StreamReset:
            stream.reset()  # the usual end: the peer has gone
        except ProtocolViolation as error:
            self._network.penalise(stream.remote, Penalty.LOW_TOLERANCE, f"kad-dht: {error}")
            stream.reset()
        except QueryRefused as refused:
            if refused.blame:
                penalty = Penalty.HIGH_TOLERANCE if refused.blame == "excess" else Penalty.MID_TOLERANCE
                self._network.penalise(stream.remote, penalty, f"kad-dht: {refused}")
            stream.reset()

    async def _serve(self, stream: Stream) -> None:
        peer = bytes(stream.remote)
        connection = self._network.connection(stream.remote)
        observed = connection.address if connection is not None else None
        scope = trio.CancelScope(deadline=trio.current_time() + _INBOUND_IDLE)
        sender = Sender(stream, self._spawn, _UNREAD, scope.cancel)
        greeted = False

        def take(data: bytes) -> None:
            nonlocal greeted
            now = trio.current_time()
            scope.deadline = now + _INBOUND_IDLE
            self._core.admit_query(peer, now)  # before a byte is read: reading costs more than refusing
            try:
                answer = self._core.receive_query(peer, decode_message(data), now, observed, admitted=True)
            except WireError as error:
                raise ProtocolViolation(str(error)) from error
            self._flush()
            if answer is not None:
                if greeted:
                    answer.sender, answer.proof = None, b""
                greeted = True
                sender.put(encode_message(answer))

        with scope:
            await pump_frames(stream, MAX_MESSAGE, take)
            await sender.finish()
