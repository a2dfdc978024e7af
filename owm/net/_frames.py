"""Frames over a stream, for protocols that read and write one message at a time."""

from __future__ import annotations

from owm.net._core_frames import decode_varint, encode_frame
from owm.net._interface import Stream
from owm.net.errors import FrameTooLarge, StreamReset

__all__ = ["FrameStream", "read_frame", "write_frame"]

_CHUNK = 65536


class FrameStream:
    """A stream read and written in frames; one reader and one writer at a time.

    Args:
        stream: owned by the caller.
        max_frame: bytes of the largest frame taken from the peer.
    """

    def __init__(self, stream: Stream, max_frame: int) -> None:
        self.stream = stream
        self.max_frame = max_frame
        self._buffer = bytearray()

    async def receive(self) -> bytes | None:
        """The next frame, or None when the peer has finished. Cancellation loses nothing.

        Raises:
            FrameTooLarge, ProtocolViolation: what came is not allowed; reset the stream and penalise the peer.
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
                    return frame
            data = await self.stream.receive(_CHUNK)
            if not data:
                if self._buffer:
                    raise StreamReset("the stream ended within a frame")
                return None
            self._buffer += data

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
    while (decoded := decode_varint(header)) is None:
        byte = await stream.receive(1)
        if not byte:
            if header:
                raise StreamReset("the stream ended within a frame")
            return None
        header += byte
    length = decoded[0]
    if length > max_frame:
        raise FrameTooLarge(f"a frame of {length} bytes, where {max_frame} are allowed")
    frame = bytearray()
    while len(frame) < length:
        data = await stream.receive(min(_CHUNK, length - len(frame)))
        if not data:
            raise StreamReset("the stream ended within a frame")
        frame += data
    return bytes(frame)


async def write_frame(stream: Stream, payload: bytes) -> None:
    """Send one frame; raises StreamReset."""
    await stream.send(encode_frame(payload))
