"""Frames over a stream, for protocols that read and write one message at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from owm.net._core_frames import FrameDecoder, decode_varint, encode_frame, seconds_for
from owm.net._interface import Stream
from owm.net.errors import FrameTooLarge, ProtocolViolation, StreamReset

__all__ = ["FrameStream", "pump_frames", "read_frame", "write_frame"]

_CHUNK: Final = 65536


class FrameStream:
    """A stream read and written in frames; one reader and one writer at a time.

    Args:
        stream: owned by the caller.
        max_frame: bytes of the largest frame taken from the peer.

    Between frames a peer may be silent as long as the caller likes; a frame that has begun must come in within 20 s and
    a second for each 8 KiB.
    """

    def __init__(self, stream: Stream, max_frame: int) -> None:
        self.stream = stream
        self.max_frame = max_frame
        self._buffer = bytearray()
        self._began: float | None = None  # when the frame that is coming in did

    async def receive(self) -> bytes | None:
        """The next frame, or None when the peer has finished. Cancellation loses nothing.

        Raises:
            FrameTooLarge, ProtocolViolation: what came is not allowed, or comes too slowly; reset the stream and
                penalise the peer.
            StreamReset: the stream broke, or ended within a frame.
        """
        while True:
            header = decode_varint(self._buffer)
            if header is not None:
                length, start = header
                if length > self.max_frame:
                    raise FrameTooLarge(f"a frame of {length} bytes, where {self.max_frame} are allowed")
                if len(self._buffer) - start >= length:
                    frame = bytes(self._buffer[start : start + length])
                    del self._buffer[: start + length]
                    self._began = None
                    return frame
            data = await self._more(header[0] if header is not None else 0)
            if not data:
                if self._buffer:
                    raise StreamReset("the stream ended within a frame")
                return None
            self._buffer += data

    async def _more(self, length: int) -> bytes:
        if not self._buffer:
            return await self.stream.receive(_CHUNK)
        if self._began is None:
            self._began = trio.current_time()
        return await _in_time(self.stream, _CHUNK, self._began + seconds_for(length))

    async def send(self, payload: bytes) -> None:
        """Send one frame; raises StreamReset. A cancellation may leave half a frame behind: reset the stream then."""
        await self.stream.send(encode_frame(payload))


async def read_frame(stream: Stream, max_frame: int) -> bytes | None:
    """One frame and not a byte more, or None when the peer has finished.

    For streams with a single message each way; many frames are read faster through :class:`FrameStream`. A cancelled
    read leaves the stream within a frame: reset it.

    Raises:
        FrameTooLarge, ProtocolViolation, StreamReset: as :meth:`FrameStream.receive`.
    """
    header = bytearray()
    deadline = float("inf")
    while (decoded := decode_varint(header)) is None:
        byte = await _in_time(stream, 1, deadline)
        if not header:
            deadline = trio.current_time() + seconds_for(0)
        if not byte:
            if header:
                raise StreamReset("the stream ended within a frame")
            return None
        header += byte
    length = decoded[0]
    if length > max_frame:
        raise FrameTooLarge(f"a frame of {length} bytes, where {max_frame} are allowed")
    frame = bytearray()
    deadline += seconds_for(length) - seconds_for(0)
    while len(frame) < length:
        data = await _in_time(stream, min(_CHUNK, length - len(frame)), deadline)
        if not data:
            raise StreamReset("the stream ended within a frame")
        frame += data
    return bytes(frame)


async def pump_frames(stream: Stream, max_frame: int, sink: Callable[[bytes], None]) -> None:
    """Hand every frame that comes to ``sink``, at once and in order, until the peer has finished; see Stream.pump.

    Raises:
        FrameTooLarge, ProtocolViolation, StreamReset: as :meth:`FrameStream.receive`.
        Exception: whatever ``sink`` raised; it is not called again.
    """
    decoder = FrameDecoder(max_frame)
    slow = trio.CancelScope()  # has a deadline only within a frame: peers have dozens of streams that are silent
    frame, since = -1, 0.0  # the one that is coming in, and since when

    def take(data: bytes) -> None:
        nonlocal frame, since
        for each in decoder.feed(data):
            sink(each)
        if decoder.is_inside_frame:
            if frame != decoder.completed:
                frame, since = decoder.completed, trio.current_time()
            slow.deadline = since + seconds_for(decoder.length)
        elif frame >= 0:
            frame, slow.deadline = -1, float("inf")

    with slow:
        await stream.pump(take)
    if slow.cancelled_caught:
        raise ProtocolViolation("a frame comes in too slowly")
    if decoder.is_inside_frame:
        raise StreamReset("the stream ended within a frame")


async def _in_time(stream: Stream, most: int, deadline: float) -> bytes:
    """Bytes of a frame that has begun."""
    with trio.CancelScope(deadline=deadline) as scope:
        return await stream.receive(most)
    assert scope.cancelled_caught
    raise ProtocolViolation("a frame comes in too slowly")


async def write_frame(stream: Stream, payload: bytes) -> None:
    """Send one frame; raises StreamReset."""
    await stream.send(encode_frame(payload))
