"""multistream-select: agree on a protocol. Bytes in, bytes out; no I/O.

Specification: https://github.com/multiformats/multistream-select. Each message is a varint length and a line of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["MAX_MESSAGE", "Listening", "MultistreamError", "Proposing"]

MAX_MESSAGE: Final = 1024  #: bytes of one message, the line feed included
_HEADER: Final = "/multistream/1.0.0"
_NO: Final = "na"
_MAX_PROPOSALS: Final = 32


class MultistreamError(Exception):
    """The peer does not speak multistream-select, or is playing with us."""


def encode(text: str) -> bytes:
    """One message."""
    line = text.encode() + b"\n"
    if len(line) > MAX_MESSAGE:
        raise ValueError(f"a protocol name of {len(line)} bytes")
    if len(line) < 0x80:
        return bytes((len(line),)) + line
    return bytes((len(line) & 0x7F | 0x80, len(line) >> 7)) + line


class _Messages:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self.rest = b""

    def next(self) -> str | None:
        """The next message, or None until more bytes come.

        Raises:
            MultistreamError: the length or the text is not acceptable; nothing was allocated for it.
        """
        if not self.rest:
            return None
        length, start = self.rest[0], 1
        if length & 0x80:
            if len(self.rest) < 2:
                return None
            if self.rest[1] & 0x80 or not self.rest[1]:
                raise MultistreamError("a length that is too large, or not in its shortest form")
            length, start = length & 0x7F | self.rest[1] << 7, 2
        if not 0 < length <= MAX_MESSAGE:
            raise MultistreamError(f"a message of {length} bytes")
        if len(self.rest) < start + length:
            return None
        line = self.rest[start : start + length]
        self.rest = self.rest[start + length :]
        if line[-1:] != b"\n":
            raise MultistreamError("a message without its line feed")
        try:
            return line[:-1].decode()
        except UnicodeDecodeError:
            raise MultistreamError("a message that is not text") from None


class Proposing:
    """The side that wants a protocol.

    Args:
        proposals: in order of preference.
    """

    def __init__(self, proposals: Sequence[str]) -> None:
        if not proposals:
            raise ValueError("nothing to propose")
        self._proposals = list(proposals)
        self._messages = _Messages()
        self._greeted = False
        self.selected: str | None = None  #: what was agreed
        self.refused = False  #: whether the peer speaks none of the proposals

    @property
    def rest(self) -> bytes:
        """Bytes received after the negotiation's end: they belong to the protocol."""
        return self._messages.rest

    def begin(self) -> bytes:
        """What to send first: greeting and first proposal at once, which saves a round trip."""
        return encode(_HEADER) + encode(self._proposals[0])

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns what to send. Finished when :attr:`selected` or :attr:`refused` is set."""
        self._messages.rest += data
        out = b""
        while self.selected is None and not self.refused and (message := self._messages.next()) is not None:
            if not self._greeted:
                if message != _HEADER:
                    raise MultistreamError("no greeting")
                self._greeted = True
            elif message == self._proposals[0]:
                self.selected = message
            elif message == _NO:
                self._proposals.pop(0)
                self.refused = not self._proposals
                if self._proposals:
                    out += encode(self._proposals[0])
            else:
                raise MultistreamError("an answer to something that was not asked")
        return out


class Listening:
    """The side that is asked.

    Args:
        speaks: whether a protocol is spoken here.
    """

    def __init__(self, speaks: Callable[[str], bool]) -> None:
        self._speaks = speaks
        self._messages = _Messages()
        self._greeted = False
        self._asked = 0
        self.selected: str | None = None  #: what was agreed

    @property
    def rest(self) -> bytes:
        """Bytes received after the negotiation's end: they belong to the protocol."""
        return self._messages.rest

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns what to send. Finished when :attr:`selected` is set."""
        self._messages.rest += data
        out = b""
        while self.selected is None and (message := self._messages.next()) is not None:
            if not self._greeted:
                if message != _HEADER:
                    raise MultistreamError("no greeting")
                self._greeted = True
                out += encode(_HEADER)
            elif self._speaks(message):
                self.selected = message
                out += encode(message)
            else:
                self._asked += 1
                if self._asked >= _MAX_PROPOSALS:
                    raise MultistreamError("too many proposals")
                out += encode(_NO)
        return out
