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
from owm.net import FrameStream, Network, Penalty, Stream
from owm.net._core_frames import encode_frame
from owm.net.errors import NotDialled, TooManyStreams

__all__ = ["Link", "LinkEvents"]

_STUCK: Final = 4.0  # seconds that an answer may be overdue before the stream is given up
_MAX_ADDRESSES: Final = 16


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What a link reports: each query ends in exactly one of the two.

    ``answered`` is given the query, the answer and where the peer was seen; ``failed`` the query, where the peer was
    seen if it was reached at all, and whether it was our own doing.
    """

    answered: Callable[[int, Message | None, str | None], None]
    failed: Callable[[int, str | None, bool], None]


class Link:
    """Sends queries to one peer; ends by itself after ``idle`` seconds without any, or when told to.

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
        self._ending = False
        self._connected = False
        self._dialling: trio.CancelScope | None = None
        self._addresses = contact.addresses
        self._observed: str | None = None  # the far end of the connection

    @property
    def idle(self) -> bool:
        """Whether nothing is sent or waited for."""
        return self._connected and not self._queue and not self._waiting

    def end(self) -> None:
        """Have an idle link end now."""
        self._ending = True
        self._wake.set()

    def send(self, query: SendQuery) -> None:
        """Queue a query."""
        self._queue.append(query)
        self._wake.set()

    def dial_also(self, contact: Contact) -> None:
        """The peer is said to be elsewhere too: while we are not connected, try all addresses at once."""
        if not self._connected and not set(contact.addresses) <= set(self._addresses):
            self._addresses = tuple(dict.fromkeys((*contact.addresses, *self._addresses)))[:_MAX_ADDRESSES]
            if self._dialling is not None:
                self._dialling.cancel()

    async def run(self) -> None:
        """Connect, then send and receive until idle or broken. Never raises but for cancellation."""
        stream = None
        ours = False
        try:
            stream = await self._open()
            if stream is not None:
                frames = FrameStream(stream, MAX_MESSAGE)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, frames, nursery.cancel_scope)
                    await self._write(frames)
                    nursery.cancel_scope.cancel()
                with trio.move_on_after(1.0):
                    await stream.aclose()
        except* (NotDialled, TooManyStreams):
            ours = True
        except* OwmError:
            pass  # the queries fail below; the core judges the peer by that
        finally:
            self.open = False
            if stream is not None:
                stream.reset()
            for query_id, _ in self._waiting:
                self._events.failed(query_id, self._observed, ours)
            for query in self._queue:
                self._events.failed(query.query_id, self._observed, ours)

    async def _open(self) -> Stream | None:
        """The stream, or None when it took too long."""
        self.dialled = not self._network.is_connected(self.peer)
        while not self._connected:
            deadline = self._queue[-1].deadline
            addresses = self._addresses
            with trio.CancelScope(deadline=deadline) as self._dialling:
                try:
                    await self._network.connect(self.peer, addresses)
                    self._connected = True
                except NotDialled as error:
                    # It failed at other addresses, and is put off for a moment; whoever seeks this very peer waits.
                    sought = any(query.message.key == self.contact.id for query in self._queue)
                    wait = error.retry_after
                    if not sought or wait is None or trio.current_time() + wait >= deadline:
                        raise
                    await trio.sleep(wait + 0.01)
            if not self._connected and trio.current_time() >= deadline:
                return None
        connection = self._network.connection(self.peer)
        self._observed = connection.address if connection is not None else None
        with trio.move_on_at(deadline):
            return await self._network.open_stream(self.peer, self._protocol)
        return None

    async def _write(self, frames: FrameStream) -> None:
        while True:
            if not self._queue:
                if self._ending and not self._waiting:
                    return
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
                    self._events.failed(query_id, self._observed, False)
                raise
            for query_id in one_way:
                self._events.answered(query_id, None, self._observed)

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
            self._events.answered(query_id, message, self._observed)
        scope.cancel()
