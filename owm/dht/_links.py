"""One long-lived stream to each peer that is being asked, with requests sent ahead of the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from owm.dht._core_types import Contact, Message, MessageType, SendQuery
from owm.dht._core_wire import MAX_MESSAGE, WireError, decode_message, encode_message
from owm.dht._sending import Sender, Spawn
from owm.errors import OwmError
from owm.identity import PeerId
from owm.net import Network, Penalty, Stream, pump_frames
from owm.net.errors import NotDialled, StreamReset, TooManyStreams

__all__ = ["Link", "LinkEvents"]

_STUCK: Final = 4.0  # seconds that an answer may be overdue before the stream is given up
_MAX_ADDRESSES: Final = 16
_UNSENT: Final = 1 << 20  # bytes of queries that a peer does not take


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

    def __init__(
        self, network: Network, protocol: str, contact: Contact, events: LinkEvents, idle: float, spawn: Spawn
    ) -> None:
        self.contact = contact
        self.peer = PeerId(contact.id)
        self.dialled = False  # whether the connection is here for our sake
        self.open = True
        self._network = network
        self._protocol = protocol
        self._events = events
        self._idle = idle
        self._spawn = spawn
        self._queue: deque[SendQuery] = deque()  # until there is a stream
        self._waiting: deque[tuple[int, float]] = deque()  # queries without an answer, and their deadlines
        self._sender: Sender | None = None
        self._scope = trio.CancelScope()
        self._greeted = False
        self._connected = False
        self._dialling: trio.CancelScope | None = None
        self._addresses = contact.addresses
        self._observed: str | None = None  # the far end of the connection

    @property
    def idle(self) -> bool:
        """Whether nothing is sent or waited for."""
        return self._connected and not self._queue and not self._waiting

    def end(self) -> None:
        """End an idle link now, or one that is of no use any more."""
        self.open = False
        self._scope.cancel()

    def send(self, query: SendQuery) -> None:
        """Send a query, or queue it while there is no stream yet."""
        if self._sender is None:
            self._queue.append(query)
        else:
            self._write(self._sender, query)

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
                with self._scope:
                    self._sender = sender = Sender(stream, self._spawn, _UNSENT, self.end)
                    while self._queue:
                        self._write(sender, self._queue.popleft())
                    await pump_frames(stream, MAX_MESSAGE, self._take)
                with trio.move_on_after(1.0):
                    await stream.aclose()
        except (NotDialled, TooManyStreams):
            ours = True
        except OwmError:
            pass  # the queries fail below; the core judges the peer by that
        finally:
            self.open, self._sender = False, None  # which refers to us: so both go at once
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

    def _write(self, sender: Sender, query: SendQuery) -> None:
        now = trio.current_time()
        if self._waiting and now > self._waiting[0][1] + _STUCK:
            self.end()
        one_way = query.message.type is MessageType.ADD_PROVIDER
        if not one_way:
            self._waiting.append((query.query_id, query.deadline))
            self._scope.deadline = max(now + self._idle, query.deadline + _STUCK)
        elif not self._waiting:
            self._scope.deadline = now + self._idle
        try:
            sender.put(self._encode(query.message))
        except StreamReset:
            self.end()
            if one_way:
                self._events.failed(query.query_id, self._observed, False)
            return
        if one_way:
            self._events.answered(query.query_id, None, self._observed)

    def _encode(self, message: Message) -> bytes:
        """Only the first message of a stream says who sends it."""
        if self._greeted and message.sender is not None:
            message = Message(message.type, message.key, message.value, message.closer, message.providers)
        self._greeted = True
        return encode_message(message)

    def _take(self, data: bytes) -> None:
        """One answer."""
        if self._scope.cancel_called:
            return
        try:
            message = decode_message(data)
        except WireError as error:
            self._network.penalise(self.peer, Penalty.LOW_TOLERANCE, f"kad-dht: {error}")
            self.end()
            return
        if not self._waiting:
            self._network.penalise(self.peer, Penalty.MID_TOLERANCE, "kad-dht: an answer to nothing")
            self.end()
            return
        query_id, _ = self._waiting.popleft()
        if not self._waiting:
            self._scope.deadline = trio.current_time() + self._idle
        self._events.answered(query_id, message, self._observed)
