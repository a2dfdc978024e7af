"""Frames with a varint length in front (the multiformats "unsigned varint", as libp2p's own protocols use).

Sans-IO: bytes in, frames out. A length is judged as soon as it is read, before anything is kept for it.
"""

from __future__ import annotations

from typing import Final

from owm.net.errors import FrameTooLarge, ProtocolViolation

__all__ = ["FrameDecoder", "decode_varint", "encode_frame", "encode_varint", "seconds_for"]

MAX_VARINT_BYTES: Final = 9  #: of the multiformats specification: 63 bits


_LEAST_SECONDS: Final = 20.0
_LEAST_RATE: Final = 8192  # bytes per second


def seconds_for(length: int) -> float:
    """How long the bytes of one frame may take to come in, once it has begun: a byte every 2 s is not for ever."""
    return _LEAST_SECONDS + length / _LEAST_RATE


def encode_varint(value: int) -> bytes:
    """The shortest form; raises ValueError below 0 and above 63 bits."""
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{value} does not fit into an unsigned varint")
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(data: bytes | bytearray | memoryview, start: int = 0) -> tuple[int, int] | None:
    """The number at ``start`` and where it ends, or None while its end is missing.

    Raises:
        ProtocolViolation: longer than nine bytes, or not the shortest form.
    """
    value = 0
    for index in range(start, min(len(data), start + MAX_VARINT_BYTES)):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * (index - start)
        if byte < 0x80:
            if byte == 0 and index > start:
                raise ProtocolViolation("a varint is not in its shortest form")
            return value, index + 1
    if len(data) - start >= MAX_VARINT_BYTES:
        raise ProtocolViolation("a varint is longer than nine bytes")
    return None


def encode_frame(payload: bytes) -> bytes:
    """``payload`` with its length in front."""
    return encode_varint(len(payload)) + payload


class FrameDecoder:
    """Cuts a byte stream into frames of at most ``max_frame`` bytes each.

    After an error the decoder, like the stream that fed it, is of no more use.
    """

    def __init__(self, max_frame: int) -> None:
        if max_frame < 0:
            raise ValueError("the largest frame cannot be negative")
        self.max_frame = max_frame
        self._buffer = bytearray()
        self.completed = 0  #: frames since the start
        self._length: int | None = None  # of the frame that is coming in

    @property
    def is_inside_frame(self) -> bool:
        """Whether the bytes so far end within a frame: an end of the stream here means that something is missing."""
        return bool(self._buffer) or self._length is not None

    @property
    def length(self) -> int:
        """Bytes of the frame that is coming in, 0 while that is not known."""
        return self._length or 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes; returns the frames that are complete now.

        Raises:
            FrameTooLarge: a length above ``max_frame``.
            ProtocolViolation: a length that is no varint.
        """
        buffer = self._buffer
        if not buffer and self._length is None and len(data) > 2:  # most often one whole frame comes: no copies then
            read = decode_varint(data)
            if read is not None and sum(read) == len(data) and read[0] <= self.max_frame:
                self.completed += 1
                return [data[read[1] :]]
        buffer += data
        frames: list[bytes] = []
        position = 0
        while True:
            if self._length is None:
                read = decode_varint(buffer, position)
                if read is None:
                    break
                self._length, position = read
                if self._length > self.max_frame:
                    raise FrameTooLarge(f"a frame of {self._length} bytes, where {self.max_frame} are allowed")
            if len(buffer) - position < self._length:
                break
            frames.append(bytes(buffer[position : position + self._length]))
            position += self._length
            self._length = None
            self.completed += 1
        del buffer[:position]
        return frames
