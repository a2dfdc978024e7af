"""The messages of a call, and the credit that keeps a slow reader from blocking others. Sans-IO.

A stream carries the calls of the peer that opened it. Every frame is one message: kind, call id (varint), body::

    client                              server
      | -- REQUEST id timeout payload -->  |   the handler starts
      | <------------- MESSAGE id body --  |   replies, as far as there is credit
      | -- MESSAGE id body ------------->  |   more from the client, as far as there is credit
      | <--- CREDIT id bytes -- / ------>  |   read by the application: as many more may come
      | -- FINISH id ------------------->  |   nothing more from the client
      | <------------------ FINISH id ---  |   the handler returned: the call is over
      | <------------- FAIL id reason ---  |   or it failed: over, too
      | -- CANCEL id ------------------->  |   or the client lost interest: over at once
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from owm.net._core_frames import decode_varint, encode_frame, encode_varint
from owm.net.errors import ProtocolViolation

__all__ = ["MAX_OVERHEAD", "MAX_REASON", "WINDOW", "Credit", "Inbox", "Kind", "Message", "decode", "encode"]

WINDOW: Final = 64 * 1024  #: bytes of messages that may wait unread in one direction of one call, the last one excepted
MAX_OVERHEAD: Final = 32  #: bytes around a payload, at most
MAX_REASON: Final = 1024  #: bytes of a failure's text
_MESSAGE_COST: Final = 32  # what an unread message costs besides its bytes, so that empty ones are not free


class Kind(IntEnum):
    """What a message means."""

    REQUEST = 0
    MESSAGE = 1
    FINISH = 2
    FAIL = 3
    CANCEL = 4
    CREDIT = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message; ``number`` is a REQUEST's timeout in milliseconds (0: none) or a CREDIT's bytes."""

    kind: Kind
    call: int
    body: bytes = b""
    number: int = 0


def encode(message: Message) -> bytes:
    """The message as a frame, its length in front."""
    head = bytes((message.kind,)) + encode_varint(message.call)
    if message.kind in (Kind.REQUEST, Kind.CREDIT):
        head += encode_varint(message.number)
    return encode_frame(head + message.body)


def decode(frame: bytes) -> Message:
    """Read a frame's content; raises ProtocolViolation for anything that :func:`encode` cannot have made."""
    if not frame or frame[0] > Kind.CREDIT:
        raise ProtocolViolation("a message of no known kind")
    kind = Kind(frame[0])
    call, position = _number(frame, 1)
    number = 0
    if kind in (Kind.REQUEST, Kind.CREDIT):
        number, position = _number(frame, position)
    body = frame[position:]
    if body and kind in (Kind.FINISH, Kind.CANCEL, Kind.CREDIT):
        raise ProtocolViolation(f"a {kind.name} message with a body")
    if kind is Kind.FAIL and len(body) > MAX_REASON:
        raise ProtocolViolation("a failure with too long a reason")
    return Message(kind, call, body, number)


def _number(frame: bytes, start: int) -> tuple[int, int]:
    read = decode_varint(frame, start)
    if read is None:
        raise ProtocolViolation("a message ends within a number")
    return read


class Credit:
    """What may still be sent in one direction of a call. One message may overdraw it: messages are never cut."""

    def __init__(self) -> None:
        self._left = WINDOW

    @property
    def may_send(self) -> bool:
        return self._left > 0

    def spend(self, message: bytes) -> None:
        self._left -= len(message) + _MESSAGE_COST

    def grant(self, amount: int) -> None:
        """More was read at the other end; raises ProtocolViolation when it is more than was ever sent."""
        self._left += amount
        if self._left > WINDOW:
            raise ProtocolViolation("more credit than was used")


class Inbox:
    """Messages of one call that the application has not read, bounded by the window."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._owed = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def put(self, message: bytes) -> None:
        """Raises ProtocolViolation when the sender had no credit left."""
        if self._unread >= WINDOW:
            raise ProtocolViolation("a message beyond the credit")
        self._messages.append(message)
        self._unread += len(message) + _MESSAGE_COST

    def take(self) -> tuple[bytes, int]:
        """The oldest message, and the credit to return now (0: not yet worth a message)."""
        message = self._messages.popleft()
        self._owed += len(message) + _MESSAGE_COST
        grant = 0
        # Credit that is owed counts as unread: otherwise a sender could be allowed a window too much.
        if self._owed >= WINDOW // 2:
            grant, self._owed = self._owed, 0
            self._unread -= grant
        return message, grant
