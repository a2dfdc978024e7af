"""The pipe between a peer and its engine process: four bytes of length, then a msgpack map."""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = ["MAX_FRAME", "FrameReader", "pack"]

MAX_FRAME: Final = 32 * 2**20

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode


def pack(message: dict[str, Any]) -> bytes:
    """One frame; raises ValueError when it is larger than MAX_FRAME."""
    body = _encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes")
    return len(body).to_bytes(4, "big") + body


class FrameReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes in any pieces; raises ValueError for a frame that is too large or no map."""
        self._buffer += data
        found = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            try:
                found.append(_decode(bytes(self._buffer[4 : 4 + size])))
            except msgspec.DecodeError as error:
                raise ValueError(f"not a message: {error}") from error
            del self._buffer[: 4 + size]
        return found
