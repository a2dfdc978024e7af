"""Yamux: many streams over one connection, each with its own window. Bytes in, events and bytes out; no I/O, no clock.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md and libp2p's copy of it.

What is sent is queued here, per stream and bounded, and handed out by :meth:`Yamux.take` in an order that keeps small
messages fast: control frames first, then one frame of each stream with little to say, then one frame of a bulk stream.

::

    stream:  opened --(our FIN)--> write side closed --(their FIN)--> gone
                    --(their FIN)-> read side closed --(our FIN)----> gone
                    --(RST either way)------------------------------> gone
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final, NamedTuple

from owm.net._core_yamux_stream import INITIAL_WINDOW, StreamState

__all__ = [
    "INITIAL_WINDOW",
    "DataReceived",
    "Event",
    "Finished",
    "GoneAway",
    "Opened",
    "PingReceived",
    "Pong",
    "Refused",
    "StreamIdsExhausted",
    "StreamWasReset",
    "Yamux",
    "YamuxError",
]

_HEADER: Final = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_LAST_ID: Final = 0xFFFFFFFF

MAX_WINDOW: Final = 2 * 1024 * 1024  #: bytes to which a receive window may grow on slow links
FRAME: Final = 32 * 1024  #: bytes of payload in one frame at most, so that streams interleave
SMALL: Final = 16 * 1024  #: a stream with no more than this queued goes before bulk streams
STREAM_QUEUE: Final = 256 * 1024  #: bytes queued for sending on one stream
CONNECTION_QUEUE: Final = 4 * 1024 * 1024  #: and on all streams of the connection
CONTROL_QUEUE: Final = 4096  #: control frames waiting to be sent; a peer that causes more is not reading
_QUICK_TRIP: Final = 0.005  # round trips shorter than this never need a larger window


class YamuxError(Exception):
    """The peer broke the protocol: the connection must end."""


class StreamIdsExhausted(Exception):
    """All 2^31 stream ids of this connection were used: open another connection."""


class Opened(NamedTuple):
    """The peer opened a stream."""

    stream_id: int


class Refused(NamedTuple):
    """The peer opened a stream beyond the cap; it was reset."""

    stream_id: int


class DataReceived(NamedTuple):
    """Bytes for the reader, to be acknowledged with :meth:`Yamux.consume`."""

    stream_id: int
    data: bytes


class Finished(NamedTuple):
    """The peer writes no more on this stream."""

    stream_id: int


class StreamWasReset(NamedTuple):
    """The peer aborted the stream."""

    stream_id: int


class PingReceived(NamedTuple):
    """The peer asked for an answer, which is queued already."""

    value: int


class Pong(NamedTuple):
    """The answer to our ping."""

    value: int


class GoneAway(NamedTuple):
    """The peer opens and accepts no more streams. ``code``: 0 normal, 1 protocol error, 2 internal error."""

    code: int


Event = Opened | Refused | DataReceived | Finished | StreamWasReset | PingReceived | Pong | GoneAway


class Yamux:
    """One end of a multiplexed connection.

    Args:
        initiator: whether we dialled (our stream ids are then odd).
        max_inbound: streams the peer may have open at once; more are reset.
    """

    def __init__(self, *, initiator: bool, max_inbound: int = 256) -> None:
        self._next_id = 1 if initiator else 2
        self._remote_parity = 0 if initiator else 1
        self._max_inbound = max_inbound
        self._inbound = 0
        self._streams: dict[int, StreamState] = {}
        self._rest = b""
        self._body = 0  # bytes still missing of the data frame being received
        self._body_stream: StreamState | None = None
        self._body_flags = 0
        self._control: deque[bytes] = deque()
        self._small: deque[StreamState] = deque()
        self._bulk: deque[StreamState] = deque()
        self._blocked: set[int] = set()
        self.queued = 0  #: bytes of data waiting to be sent
        self.carried = 0  #: bytes of data sent and received
        self.spacious = True  #: set by the caller: windows may grow
        self.writable: list[int] = []  #: streams that may send again; the caller empties it
        self.round_trip: float | None = None  #: seconds, set by the caller from its pings; lets windows grow

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._streams

    def __len__(self) -> int:
        """Streams open now."""
        return len(self._streams)

    # Sending

    def open(self, *, bulk: bool = False) -> int:
        """A new stream; the peer learns of it with the first bytes sent.

        Raises:
            StreamIdsExhausted: this connection has no ids left.
        """
        if self._next_id > _LAST_ID:
            raise StreamIdsExhausted("all stream ids of the connection were used")
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._streams[stream_id] = StreamState(stream_id, inbound=False, bulk=bulk, flags=_SYN)
        return stream_id

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Queue bytes; returns how many fitted. When not all did, the id appears in :attr:`writable` later.

        Raises:
            KeyError: the stream is gone.
        """
        stream = self._streams[stream_id]
        if stream.finishing:
            raise KeyError(stream_id)
        size = min(len(data), STREAM_QUEUE - stream.queued, CONNECTION_QUEUE - self.queued)
        if size < len(data):
            self._blocked.add(stream_id)
        if size <= 0:
            return 0
        stream.queue.append(data if size == len(data) else data[:size])
        stream.queued += size
        self.queued += size
        self._schedule(stream)
        return size

    def send_whole(self, stream_id: int, data: bytes) -> bool:
        """Queue all of ``data``, or nothing where it does not fit or the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finishing:
            return False
        if len(data) > min(STREAM_QUEUE - stream.queued, CONNECTION_QUEUE - self.queued):
            return False
        self.send(stream_id, data)
        return True

    def finish(self, stream_id: int) -> None:
        """Write no more on the stream once what is queued has gone out. Unknown streams are ignored."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.finishing:
            stream.finishing = True
            if not stream.queued:
                self._send_fin(stream)

    def has_finished(self, stream_id: int) -> bool:
        """Whether everything that was queued on the stream, its end included, was handed out."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.fin_sent

    def reset(self, stream_id: int) -> None:
        """Abort a stream, dropping what is queued. Unknown streams are ignored."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)
            if not stream.flags & _SYN:  # the peer never heard of it otherwise
                self._control.append(_HEADER.pack(0, _WINDOW_UPDATE, _RST, stream_id, 0))

    def consume(self, stream_id: int, size: int, now: float) -> bool:
        """The reader has taken ``size`` bytes; grants the peer window for more. Whether there is something to send."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finished:
            return False
        grant = stream.consume(size, now, self.round_trip, MAX_WINDOW if self.spacious else 0, _QUICK_TRIP)
        if grant:
            self._control.append(_HEADER.pack(0, _WINDOW_UPDATE, stream.take_flags(), stream_id, grant))
        return grant > 0

    def ping(self, value: int) -> None:
        self._control.append(_HEADER.pack(0, _PING, _SYN, 0, value))

    def go_away(self, code: int = 0) -> None:
        self._control.append(_HEADER.pack(0, _GO_AWAY, 0, 0, code))

    @property
    def has_output(self) -> bool:
        return bool(self._control or self._small or self._bulk)

    def take(self, limit: int = 65_000) -> bytes:
        """The next bytes to send: about ``limit`` at most, b"" when there are none."""
        out: list[bytes | memoryview] = []
        size = 0
        control = self._control
        while control and size < limit:
            frame = control.popleft()
            out.append(frame)
            size += len(frame)
        while size < limit and (self._small or self._bulk):
            for _ in range(len(self._small)):
                size += self._frame(self._small.popleft(), out)
                if size >= limit:
                    break
            if self._bulk and size < limit:
                size += self._frame(self._bulk.popleft(), out)
        if self._blocked:
            self._relieve()
        return b"".join(out)

    def _schedule(self, stream: StreamState) -> None:
        if not stream.scheduled and stream.queued and stream.send_window > 0:
            stream.scheduled = True
            (self._bulk if stream.bulk or stream.queued > SMALL else self._small).append(stream)

    def _frame(self, stream: StreamState, out: list[bytes | memoryview]) -> int:
        stream.scheduled = False
        size = min(stream.queued, stream.send_window, FRAME)
        if size <= 0:
            return 0  # reset since it was scheduled
        out.append(_HEADER.pack(0, _DATA, stream.take_flags(), stream.id, size))
        stream.take(size, out)
        self.queued -= size
        self.carried += size
        if stream.queued:
            self._schedule(stream)
        elif stream.finishing:
            self._send_fin(stream)
        return size + _HEADER.size

    def _send_fin(self, stream: StreamState) -> None:
        self._control.append(_HEADER.pack(0, _WINDOW_UPDATE, stream.take_flags() | _FIN, stream.id, 0))
        stream.fin_sent = True
        if stream.finished:
            self._drop(stream)

    def _relieve(self) -> None:
        if self.queued > CONNECTION_QUEUE // 2:
            return
        for stream_id in list(self._blocked):
            stream = self._streams.get(stream_id)
            if stream is None or stream.queued <= STREAM_QUEUE // 2:
                self._blocked.discard(stream_id)
                self.writable.append(stream_id)

    def _drop(self, stream: StreamState) -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        self._inbound -= stream.inbound
        self.queued -= stream.queued
        stream.clear()
        if stream.id in self._blocked:
            self._blocked.discard(stream.id)
            self.writable.append(stream.id)

    # Receiving

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes from the peer, cut anywhere; returns what they mean.

        Raises:
            YamuxError: the peer broke the protocol. Nothing was allocated for a length that it only announced.
        """
        events: list[Event] = []
        buffer = self._rest + data if self._rest else data
        end, at = len(buffer), 0
        while True:
            if self._body:
                if at == end:
                    break
                size = min(self._body, end - at)
                self._body -= size
                stream = self._body_stream
                if stream is not None and stream.id in self._streams:
                    events.append(DataReceived(stream.id, buffer[at : at + size]))
                at += size
                if not self._body and stream is not None:
                    self._flags(stream, self._body_flags, events)
            elif end - at >= _HEADER.size:
                self._header(buffer, at, events)
                at += _HEADER.size
            else:
                break
        self._rest = buffer[at:]
        if len(self._control) > CONTROL_QUEUE:
            raise YamuxError("the peer makes us answer and does not read the answers")
        return events

    def _header(self, buffer: bytes, at: int, events: list[Event]) -> None:
        version, kind, flags, stream_id, length = _HEADER.unpack_from(buffer, at)
        if version:
            raise YamuxError(f"unknown version {version}")
        if kind in (_DATA, _WINDOW_UPDATE):
            if not stream_id:
                raise YamuxError("a stream frame for the session")
            stream = self._accept(stream_id, events) if flags & _SYN else self._streams.get(stream_id)
            if kind == _DATA:
                if length:
                    self._expect(stream, flags, length)
                    return
            elif stream is not None:
                stream.send_window += length
                if stream.send_window > _LAST_ID:
                    raise YamuxError("a window beyond all bounds")
                self._schedule(stream)
            if stream is not None:
                self._flags(stream, flags, events)
        elif kind == _PING:
            if flags & _SYN:
                self._control.append(_HEADER.pack(0, _PING, _ACK, 0, length))
                events.append(PingReceived(length))
            else:
                events.append(Pong(length))
        elif kind == _GO_AWAY:
            events.append(GoneAway(length))
        else:
            raise YamuxError(f"unknown frame type {kind}")

    def _accept(self, stream_id: int, events: list[Event]) -> StreamState | None:
        # Not necessarily in order: a stream is announced with its first bytes, and bulk streams let others go first.
        if stream_id % 2 != self._remote_parity or stream_id in self._streams:
            raise YamuxError(f"stream id {stream_id} is not the peer's to open")
        if self._inbound >= self._max_inbound:
            self._control.append(_HEADER.pack(0, _WINDOW_UPDATE, _RST, stream_id, 0))
            events.append(Refused(stream_id))
            return None
        stream = self._streams[stream_id] = StreamState(stream_id, inbound=True, bulk=False, flags=_ACK)
        self._inbound += 1
        events.append(Opened(stream_id))
        return stream

    def _expect(self, stream: StreamState | None, flags: int, length: int) -> None:
        """Get ready for the body of a data frame."""
        if stream is None:
            if length > MAX_WINDOW:
                raise YamuxError(f"a frame of {length} bytes")
        else:
            if length > stream.receive_window:
                raise YamuxError(f"stream {stream.id} overran its receive window")
            if stream.finished:
                raise YamuxError(f"data on stream {stream.id} after its end")
            stream.receive_window -= length
            self.carried += length
        self._body, self._body_stream, self._body_flags = length, stream, flags

    def _flags(self, stream: StreamState, flags: int, events: list[Event]) -> None:
        if stream.id not in self._streams:
            return  # reset by us while its last frame was coming in
        if flags & _RST:
            self._drop(stream)
            events.append(StreamWasReset(stream.id))
        elif flags & _FIN and not stream.finished:
            stream.finished = True
            events.append(Finished(stream.id))
            if stream.fin_sent:
                self._drop(stream)
