"""One stream of a live connection, as everything above the network sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from owm.net._interface import Stream
from owm.net.errors import StreamReset

if TYPE_CHECKING:
    from owm.net._faults import Faults
    from owm.net._muxed import MuxedConnection

__all__ = ["MuxedStream"]

_YIELD_EVERY: Final = 16  # calls that need not wait, until other tasks are let run


class MuxedStream(Stream):
    """Made by :class:`~owm.net._muxed.MuxedConnection`; ``protocol`` is set once it is negotiated."""

    def __init__(self, connection: MuxedConnection, stream_id: int, *, bulk: bool = False) -> None:
        self.id = stream_id
        self.bulk = bulk
        self.protocol = ""
        self.remote = connection.remote
        self.connection = connection
        self.faults: Faults | None = None
        self.discarding_since: float | None = None  #: when reading was given up while the peer may still write
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # of the first chunk, what was read already
        self._size = 0
        self._granted = 0  # bytes pushed back, for which the peer was granted window already
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._error: StreamReset | None = None
        self._send_error: StreamReset | None = None
        self._finished = False  # the peer writes no more
        self._finishing = False  # we write no more
        self._calls = 0
        self._sink: Callable[[bytes], None] | None = None
        self._sink_failed: Exception | None = None

    @property
    def unread(self) -> int:
        """Bytes that have come and wait for a reader."""
        return self._size

    async def send(self, data: bytes) -> None:
        await self._pause()
        if self.faults is not None:
            data = await self.faults.outgoing(self, data)
        if self._send_error is not None or self._finishing:
            raise self._why_not_writable()
        connection = self.connection
        left: bytes | memoryview = data if type(data) is bytes else bytes(data)
        while left:
            if self._send_error is not None or self._finishing:
                raise self._why_not_writable()
            sent = connection.mux.send(self.id, left)
            if sent:
                connection.wake()
            if sent == len(left):
                return
            left = memoryview(left)[sent:]
            if self._writable.is_set():  # or others wait for it already: a stream may have several senders
                self._writable = trio.Event()
            await self._writable.wait()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise ValueError("at least one byte must be asked for")
        if self._chunks:
            await self._pause()
        while not self._chunks:
            if self._error is not None:
                raise StreamReset(str(self._error)) from self._error
            if self._finished:
                await trio.lowlevel.checkpoint()
                return b""
            if self._readable.is_set():
                self._readable = trio.Event()
            await self._readable.wait()
        data = self._pop(max_bytes)
        size = len(data)
        self._size -= size
        connection = self.connection
        connection.buffered -= size
        if self._granted:
            known = min(size, self._granted)
            self._granted -= known
            size -= known
        if connection.mux.consume(self.id, size, trio.current_time()):
            connection.wake()
        return data

    async def pump(self, sink: Callable[[bytes], None]) -> None:
        while self._chunks:
            sink(await self.receive())
        self._sink = sink
        try:
            while not self._finished and self._error is None and self._sink_failed is None:
                self._readable = trio.Event()
                await self._readable.wait()
        finally:
            self._sink = None
        if self._sink_failed is not None:
            raise self._sink_failed
        while data := await self.receive():
            sink(data)

    def send_nowait(self, data: bytes) -> bool:
        if self.faults is not None or self._send_error is not None or self._finishing:
            return False
        if not self.connection.mux.send_whole(self.id, data):
            return False
        self.connection.push()
        return True

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._finishing or self._send_error is not None:
            return
        self._finishing = True
        self._writable.set()
        self.connection.mux.finish(self.id)
        self.connection.wake()
        self._forget_if_done()

    def reset(self) -> None:
        closing = self.discarding_since is not None  # closed before, but the peer has not been told
        self.discarding_since = None
        if closing or (self._error is None and not (self._finishing and self._finished)):
            self.connection.mux.reset(self.id)
            self.connection.wake()
        self._break_off(StreamReset("the stream was reset here"))

    def reset_if_unfinished(self) -> None:
        if self._finished or self._error is not None:
            self._clear()
            return
        # What we sent must still arrive, and a Yamux reset would overtake it at the peer: so reading stops here, and
        # the peer is told only when it goes on sending after our end, or by the connection's owner after a while.
        self._error = StreamReset("the stream was closed here")
        self.discarding_since = trio.current_time()
        self._clear()
        self._readable.set()

    def on_data(self, data: bytes) -> None:
        if self._sink is not None:
            self._hand_on(self._sink, data)
            return
        self._chunks.append(data)
        self._size += len(data)
        if self.discarding_since is not None:
            self._clear()
            self.end_discarding()
        else:
            self._readable.set()

    def end_discarding(self) -> None:
        """Reset at last a stream that nobody reads, if all that we sent is out."""
        if self.connection.mux.has_finished(self.id):
            self.reset()

    def on_finished(self) -> None:
        self._finished = True
        self._readable.set()
        self._forget_if_done()

    def on_reset(self) -> None:
        error = StreamReset("the peer reset the stream")
        if self._finished:
            # It had said all it wanted to say: that stays readable.
            self._send_error = error
            self._writable.set()
            self.connection.streams.pop(self.id, None)
        else:
            self._break_off(error)

    def on_writable(self) -> None:
        self._writable.set()

    def connection_lost(self, reason: str) -> None:
        """The connection below is gone."""
        error = StreamReset(f"the connection ended: {reason}")
        if self._finished:
            self._send_error = self._send_error or error
            self._writable.set()
        else:
            self._break_off(error)

    def push_back(self, data: bytes) -> None:
        """Return bytes that were read too far (by a negotiation)."""
        if data:
            if self._offset:
                self._chunks[0] = self._chunks[0][self._offset :]
                self._offset = 0
            self._chunks.appendleft(data)
            self._granted += len(data)
            self._size += len(data)
            self.connection.buffered += len(data)
            self._readable.set()

    def _hand_on(self, sink: Callable[[bytes], None], data: bytes) -> None:
        connection = self.connection
        size = len(data)
        connection.buffered -= size
        if connection.mux.consume(self.id, size, connection.last_heard):
            connection.wake()
        try:
            sink(data)
        except Exception as error:  # noqa: BLE001 - raised by pump, in the task that it concerns
            self._sink, self._sink_failed = None, error
            self._readable.set()

    def _pop(self, most: int) -> bytes:
        chunks, offset = self._chunks, self._offset
        first = chunks[0]
        if len(first) - offset > most:
            self._offset = offset + most
            return first[offset : offset + most]
        chunks.popleft()
        self._offset = 0
        if offset:
            return first[offset:]
        if not chunks or len(first) + len(chunks[0]) > most:
            return first
        parts, size = [first], len(first)
        while chunks and size + len(chunks[0]) <= most:
            part = chunks.popleft()
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _why_not_writable(self) -> StreamReset:
        if self._send_error is not None:
            return StreamReset(str(self._send_error))
        return StreamReset("the stream was closed for writing")

    def _break_off(self, error: StreamReset) -> None:
        self._error = self._error or error
        self._send_error = self._send_error or error
        self._clear()
        self._readable.set()
        self._writable.set()
        self.connection.streams.pop(self.id, None)

    def _clear(self) -> None:
        self.connection.buffered -= self._size
        self._chunks.clear()
        self._offset = self._size = 0

    def _forget_if_done(self) -> None:
        if self._finishing and self._finished:
            self.connection.streams.pop(self.id, None)

    async def _pause(self) -> None:
        """A checkpoint; a full one only now and then, since it costs as much as sealing ten packets."""
        self._calls += 1
        if self._calls % _YIELD_EVERY:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
