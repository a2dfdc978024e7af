"""One long-lived stream to each peer that is being asked, with requests sent ahead of the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from owm.dht._core_types import Contact, Message, MessageType, SendQuery
from owm.dht._core_wire import MAX_MESSAGE, WireError, decode_message, encode_message
from owm.errors import OwmError
from owm.identity import PeerId
from owm.net import FrameStream, Network, Penalty
from owm.net._core_frames import encode_frame

__all__ = ["Link", "LinkEvents"]

_STUCK: Final = 4.0  # seconds that an answer may be overdue before the stream is given up


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What a link reports: each query ends in exactly one of the two."""

    answered: Callable[[int, Message | None], None]
    failed: Callable[[int], None]


class Link:
    """Sends queries to one peer; ends by itself after ``idle`` seconds without any.

    kad-dht answers the requests of a stream in their order, and ADD_PROVIDER not at all.
    """

    def __init__(self, network: Network, protocol: str, contact: Contact, events: LinkEvents, idle: float) -> None:
        self.contact = contact
        self.peer = PeerId(contact.id)
        self.dialled = False  # whether the connection is here for our sake
        self.open = True
        self._network = network
        self._protocol = protocol
        self._events = events
        self._idle = idle
        self._queue: deque[SendQuery] = deque()
        self._waiting: deque[tuple[int, float]] = deque()
        self._wake = trio.Event()
        self._greeted = False

    def send(self, query: SendQuery) -> None:
        """Queue a query."""
        self._queue.append(query)
        self._wake.set()

    async def run(self) -> None:
        """Connect, then send and receive until idle or broken. Never raises but for cancellation."""
        stream = None
        try:
            with trio.move_on_at(self._queue[0].deadline):
                self.dialled = not self._network.is_connected(self.peer)
                await self._network.connect(self.peer, self.contact.addresses)
                stream = await self._network.open_stream(self.peer, self._protocol)
            if stream is not None:
                frames = FrameStream(stream, MAX_MESSAGE)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, frames, nursery.cancel_scope)
                    await self._write(frames)
                    nursery.cancel_scope.cancel()
                with trio.move_on_after(1.0):
                    await stream.aclose()
        except* OwmError:
            pass  # the queries fail below; the core judges the peer by that
        finally:
            self.open = False
            if stream is not None:
                stream.reset()
            for query_id, _ in self._waiting:
                self._events.failed(query_id)
            for query in self._queue:
                self._events.failed(query.query_id)

    async def _write(self, frames: FrameStream) -> None:
        while True:
            if not self._queue:
                if self._waiting and trio.current_time() > self._waiting[0][1] + _STUCK:
                    return
                self._wake = trio.Event()
                with trio.move_on_after(self._idle) as idled:
                    await self._wake.wait()
                if idled.cancelled_caught and not self._queue and not self._waiting:
                    return
                continue
            out = bytearray()
            one_way: list[int] = []
            while self._queue and len(out) < 65536:
                query = self._queue.popleft()
                out += encode_frame(self._encode(query.message))
                if query.message.type is MessageType.ADD_PROVIDER:
                    one_way.append(query.query_id)
                else:
                    self._waiting.append((query.query_id, query.deadline))
            try:
                await frames.stream.send(bytes(out))
            except BaseException:
                for query_id in one_way:
                    self._events.failed(query_id)
                raise
            for query_id in one_way:
                self._events.answered(query_id, None)

    def _encode(self, message: Message) -> bytes:
        """Only the first message of a stream says who sends it."""
        if self._greeted and message.sender is not None:
            message = Message(message.type, message.key, message.value, message.closer, message.providers)
        self._greeted = True
        return encode_message(message)

    async def _read(self, frames: FrameStream, scope: trio.CancelScope) -> None:
        while (data := await frames.receive()) is not None:
            try:
                message = decode_message(data)
            except WireError as error:
                self._network.penalise(self.peer, Penalty.LOW_TOLERANCE, f"kad-dht: {error}")
                break
            if not self._waiting:
                self._network.penalise(self.peer, Penalty.MID_TOLERANCE, "kad-dht: an answer to nothing")
                break
            query_id, _ = self._waiting.popleft()
            self._events.answered(query_id, message)
        scope.cancel()
