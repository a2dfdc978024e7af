"""What both ends of a stream of calls share: the writer, and one call's messages."""

from __future__ import annotations

from typing import Final

import trio

from owm.net._core_calls import Credit, Inbox, Kind, Message, encode
from owm.net._interface import Stream
from owm.net.errors import FrameTooLarge, NetworkError, ProtocolViolation, StreamReset

__all__ = ["CallEnd", "Outbox"]

_BACKLOG: Final = 256 * 1024  # bytes that may wait for the stream before senders wait, too


class Outbox:
    """Frames on their way to one stream; a single task writes them, several at once when they come in fast."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._frames: list[bytes] = []
        self._size = 0
        self._wake = trio.Event()
        self._space = trio.Event()
        self._error: Exception | None = None

    def put_nowait(self, message: Message) -> None:
        """Queue what must not wait (credit, cancellation). Dropped when the stream is gone."""
        if self._error is None:
            frame = encode(message)
            self._frames.append(frame)
            self._size += len(frame)
            self._wake.set()

    async def room(self) -> None:
        """Wait until there is room for a message; raises StreamReset. What is put right after keeps its order."""
        await trio.lowlevel.checkpoint()
        while self._size >= _BACKLOG and self._error is None:
            await self._space.wait()
        if self._error is not None:
            raise StreamReset(str(self._error)) from self._error

    async def put(self, message: Message) -> None:
        """Queue a message once there is room; raises StreamReset. Cancelled, it is queued whole or not at all."""
        await self.room()
        self.put_nowait(message)

    def fail(self, error: Exception) -> None:
        """The stream is gone: whoever waits is told."""
        self._error = self._error or error
        self._frames.clear()
        self._wake.set()
        self._space.set()

    async def run(self) -> None:
        """Write until cancelled; raises StreamReset."""
        while True:
            if not self._frames:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            data = b"".join(self._frames)
            self._frames.clear()
            await self._stream.send(data)
            self._size -= len(data)
            self._space.set()
            self._space = trio.Event()


class CallEnd:
    """One end of one call: what comes in, and what may go out.

    Args:
        outbox: of the stream.
        call: the call's id.
        max_send: bytes of the largest message this end sends.
        max_receive: bytes of the largest message this end takes.
    """

    def __init__(self, outbox: Outbox, call: int, max_send: int, max_receive: int) -> None:
        self.id = call
        self.max_receive = max_receive
        self.error: NetworkError | ProtocolViolation | None = None
        self.finished = False  # the other end has
        self._outbox = outbox
        self._max_send = max_send
        self._credit = Credit()
        self._inbox = Inbox()
        self._changed = trio.Event()

    async def send(self, message: bytes) -> None:
        """Raises StreamReset or what ended the call; waits while the other end does not read."""
        if len(message) > self._max_send:
            raise ValueError(f"a message of {len(message)} bytes, where {self._max_send} are allowed")
        await self._outbox.room()
        while not self._credit.may_send and self.error is None:
            await self._changed.wait()
            await self._outbox.room()
        self._raise_error()
        self._credit.spend(message)
        self._outbox.put_nowait(Message(Kind.MESSAGE, self.id, message))

    async def receive(self) -> bytes | None:
        """The next message, or None after the last. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            self._raise_error()
            if self.finished:
                return None
            await self._changed.wait()
        message, grant = self._inbox.take()
        if grant and not self.finished and self.error is None:
            self._outbox.put_nowait(Message(Kind.CREDIT, self.id, number=grant))
        return message

    def on_message(self, body: bytes) -> None:
        """Raises ProtocolViolation when there was no credit for it."""
        if len(body) > self.max_receive:
            self.end(FrameTooLarge(f"a message of {len(body)} bytes, where {self.max_receive} are allowed"))
            return
        self._inbox.put(body)
        self._notify()

    def on_credit(self, amount: int) -> None:
        self._credit.grant(amount)
        self._notify()

    def end(self, error: NetworkError | ProtocolViolation | None = None) -> None:
        """The other end has finished, or ``error`` ends the call both ways. What came before can still be read."""
        self.finished = True
        self.error = self.error or error
        self._notify()

    def _raise_error(self) -> None:
        if self.error is not None:
            # A fresh one each time: many calls may fail with the same error, each with a traceback of its own.
            raise type(self.error)(str(self.error)) from self.error

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
