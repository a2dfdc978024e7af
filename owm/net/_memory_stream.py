"""Connections and streams of a :class:`MemoryNetwork`, with the windows of the real ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import trio

from owm.identity import PeerId
from owm.net._interface import Stream
from owm.net._memory_link import Wire
from owm.net.errors import ProtocolNotSupported, StreamReset

__all__ = ["HEADER", "WINDOW", "MemoryConnection", "MemoryStream"]

WINDOW: Final = 256 * 1024  #: bytes that may be under way to a reader that does not read, as in Yamux
_FRAME: Final = 16 * 1024
_RESTING: Final = 60.0  # seconds after which it is asked anew whether bytes may pass
HEADER: Final = 12  #: bytes of a Yamux frame around the data


class MemoryConnection:
    """One end of a connection; ``other`` is the far end, reached only through the wire.

    Args:
        accept: called with each stream that the far end opens; returns why it is refused, or None.
        ended: called once when this end is closed, with the reason.
        count: called with the bytes received (positive) or sent (negative); returns the seconds that a sender rests.
        linger: seconds for which the far end may leave open a stream that is no longer read here.
    """

    wire: Wire
    other: MemoryConnection

    def __init__(
        self,
        local: PeerId,
        remote: PeerId,
        address: str,
        inbound: bool,
        accept: Callable[[MemoryConnection, MemoryStream], Exception | None],
        ended: Callable[[MemoryConnection, str], None],
        count: Callable[[MemoryConnection, int], float],
        linger: float,
    ) -> None:
        self.local = local
        self.remote = remote
        self.address = address
        self.inbound = inbound
        self.opened = trio.current_time()
        self.is_open = True
        self.observer: Callable[[PeerId, PeerId, str, bytes], None] | None = None
        self.stalled_at: float | None = None
        self.round_trip: float | None = None
        self.streams: dict[int, MemoryStream] = {}
        self._accept = accept
        self._ended = ended
        self._count = count
        self._linger = linger
        self._lingering: set[int] = set()
        self._ids = itertools.count(2 if inbound else 1, 2)

    def open(self, protocol: str, bulk: bool) -> MemoryStream:
        """Start a stream; it is usable once ``opened`` is set without an error."""
        stream = MemoryStream(self, next(self._ids), protocol, bulk)
        self.streams[stream.id] = stream
        self.frame(len(protocol), bulk, lambda far: far.on_open(stream.id, protocol, bulk))
        return stream

    def frame(self, size: int, bulk: bool, arrive: Callable[[MemoryConnection], None]) -> float:
        """Put one frame on the wire; ``arrive`` runs at the far end when it gets there. How long to rest then."""
        if not self.is_open:
            return 0.0
        rest = self._count(self, -(size + HEADER))
        other = self.other

        def deliver() -> None:
            if other.is_open:
                other._count(other, size + HEADER)
                arrive(other)

        self.wire.send(size + HEADER, bulk, deliver)
        return rest

    @property
    def must_rest(self) -> float:
        """Seconds until more may be sent, as far as the day's bytes are concerned."""
        return self._count(self, 0) if self.is_open else 0.0

    def on_open(self, stream_id: int, protocol: str, bulk: bool) -> None:
        stream = MemoryStream(self, stream_id, protocol, bulk)
        stream.opened.set()
        self.streams[stream_id] = stream
        refusal = self._accept(self, stream)
        if refusal is not None:
            del self.streams[stream_id]
            self.frame(0, bulk, lambda far: far.on_refused(stream_id, refusal))
        else:
            self.frame(0, bulk, lambda far: far.on_accepted(stream_id))

    def on_accepted(self, stream_id: int) -> None:
        if stream := self.streams.get(stream_id):
            stream.accepted = True
            stream.opened.set()

    def on_refused(self, stream_id: int, refusal: Exception) -> None:
        if stream := self.streams.pop(stream_id, None):
            stream.break_off(refusal)

    def on_data(self, stream_id: int, data: bytes, bulk: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            # Nobody reads here any more; let the sender know instead of letting it wait for ever.
            self._lingering.discard(stream_id)
            self.frame(0, bulk, lambda far: far.on_reset(stream_id))
        else:
            if self.observer is not None:
                self.observer(self.remote, self.local, stream.protocol, data)
            stream.on_data(data)

    def on_credit(self, stream_id: int, amount: int) -> None:
        if stream := self.streams.get(stream_id):
            stream.on_credit(amount)

    def linger(self, stream_id: int) -> None:
        """A stream was closed here and not there: the far end has a while to finish before it is told."""

        def over() -> None:
            if stream_id in self._lingering:
                self._lingering.discard(stream_id)
                self.frame(0, False, lambda far: far.on_reset(stream_id))

        self._lingering.add(stream_id)
        self.wire.later(self._linger, over)

    def on_finished(self, stream_id: int) -> None:
        self._lingering.discard(stream_id)
        if stream := self.streams.get(stream_id):
            stream.on_finished()

    def on_reset(self, stream_id: int) -> None:
        self._lingering.discard(stream_id)
        if stream := self.streams.pop(stream_id, None):
            stream.on_reset()

    def drop(self, reason: str, *, tell: bool = True) -> None:
        """Close this end at once; the far end hears of it through the wire when ``tell``. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        for stream in list(self.streams.values()):
            stream.break_off(StreamReset(f"the connection ended: {reason}"))
        self.streams.clear()
        if tell:
            other = self.other
            self.wire.send_last(lambda: other.drop("closed by the peer", tell=False))
        self._ended(self, reason)


class MemoryStream(Stream):
    """A stream with a send window and a bounded receive buffer."""

    def __init__(self, connection: MemoryConnection, stream_id: int, protocol: str, bulk: bool) -> None:
        self.protocol = protocol
        self.remote = connection.remote
        self.id = stream_id
        self.opened = trio.Event()  #: the far end has answered, or never will
        self.accepted = False
        self.error: Exception | None = None
        self._connection = connection
        self.bulk = bulk
        self._buffer = bytearray()
        self._window = WINDOW
        self._owed = 0  # bytes read whose credit has not been returned
        self._changed = trio.Event()
        self._finished = False  # by us
        self._remote_finished = False
        self._send_broken = False
        self._sink: Callable[[bytes], None] | None = None
        self._sink_failed: Exception | None = None

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            self._check_writable()
            if self._window == 0:
                await self._wait()
                continue
            size = min(len(view), self._window, _FRAME)
            self._window -= size
            if self._frame_data(bytes(view[:size])):
                await self._rest()
            view = view[size:]

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if max_bytes < 1:
            raise ValueError("at least one byte must be asked for")
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self.error is not None:
                raise StreamReset(str(self.error)) from self.error
            if self._remote_finished:
                return b""
            await self._wait()
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        self._consumed(len(data))
        return data

    async def pump(self, sink: Callable[[bytes], None]) -> None:
        while self._buffer:
            sink(await self.receive())
        self._sink = sink
        try:
            while not self._remote_finished and self.error is None and self._sink_failed is None:
                await self._wait()
        finally:
            self._sink = None
        if self._sink_failed is not None:
            raise self._sink_failed
        while data := await self.receive():
            sink(data)

    def send_nowait(self, data: bytes) -> bool:
        if self.error is not None or self._send_broken or self._finished or len(data) > min(self._window, _FRAME):
            return False
        self._window -= len(data)
        self._frame_data(data)
        return True

    def _consumed(self, size: int) -> None:
        self._owed += size
        if self._owed >= WINDOW // 2 and not self._remote_finished:
            owed, self._owed = self._owed, 0
            self._connection.frame(0, False, lambda far: far.on_credit(self.id, owed))

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._finished or self.error is not None:
            return
        self._finished = True
        self._connection.frame(0, self.bulk, lambda far: far.on_finished(self.id))
        self._release_if_done()

    def reset(self) -> None:
        if self.error is None and not (self._finished and self._remote_finished):
            self._connection.streams.pop(self.id, None)
            self._connection.frame(0, self.bulk, lambda far: far.on_reset(self.id))
        self.break_off(StreamReset("the stream was reset here"))

    def reset_if_unfinished(self) -> None:
        if not self._remote_finished and self.error is None:
            # What we sent still arrives; only what the peer goes on sending, or its silence, is answered with a reset.
            self._connection.streams.pop(self.id, None)
            self._connection.linger(self.id)
            self.break_off(StreamReset("the stream was closed here"))

    def break_off(self, error: Exception) -> None:
        """End both directions; who waits is told."""
        if self.error is None:
            self.error = error
        self._buffer.clear()
        self.opened.set()
        self._notify()

    def on_data(self, data: bytes) -> None:
        if self._sink is not None:
            self._consumed(len(data))
            try:
                self._sink(data)
            except Exception as error:  # noqa: BLE001 - raised by pump, in the task that it concerns
                self._sink, self._sink_failed = None, error
                self._notify()
            return
        if len(self._buffer) + len(data) > WINDOW:
            self.reset()  # cannot happen with our own sender
            return
        self._buffer += data
        self._notify()

    def on_credit(self, amount: int) -> None:
        self._window += amount
        self._notify()

    def on_finished(self) -> None:
        self._remote_finished = True
        self._release_if_done()
        self._notify()

    def on_reset(self) -> None:
        if self._remote_finished:
            self._send_broken = True  # what was sent before the end stays readable
            self._notify()
        else:
            self.break_off(StreamReset("the peer reset the stream"))

    def raise_refusal(self) -> None:
        """Raise what the stream could not be opened for, if anything; a later reset is for who reads or writes."""
        if self.accepted:
            return
        if isinstance(self.error, ProtocolNotSupported):
            raise ProtocolNotSupported(str(self.error))
        if self.error is not None:
            raise StreamReset(str(self.error)) from self.error

    def _check_writable(self) -> None:
        if self.error is not None:
            raise StreamReset(str(self.error)) from self.error
        if self._send_broken:
            raise StreamReset("the peer reset the stream")
        if self._finished:
            raise StreamReset("the stream was closed for writing")

    def _frame_data(self, chunk: bytes) -> float:
        return self._connection.frame(len(chunk), self.bulk, lambda far: far.on_data(self.id, chunk, self.bulk))

    async def _rest(self) -> None:
        """Let nothing more go out for as long as the day's bytes demand."""
        while (seconds := self._connection.must_rest) and self.error is None:
            until = trio.current_time() + min(seconds, _RESTING)
            while trio.current_time() < until and self.error is None:
                with trio.move_on_at(until):
                    await self._wait()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _release_if_done(self) -> None:
        if self._finished and self._remote_finished:
            self._connection.streams.pop(self.id, None)
