"""What can go wrong between peers."""

from __future__ import annotations

from owm.errors import PeerError, TemporaryError, UsageError

__all__ = [
    "DialFailed",
    "FrameTooLarge",
    "NetworkError",
    "NotConnected",
    "NotDialled",
    "ProtocolNotSupported",
    "ProtocolViolation",
    "RemoteError",
    "RequestTimeout",
    "StreamReset",
    "TooManyStreams",
]


class NetworkError(TemporaryError):
    """The network failed; another peer, or the same one later, may answer."""


class DialFailed(NetworkError):
    """No address of the peer could be reached."""

    def __init__(self, message: str, reasons: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = reasons or {}


class NotDialled(DialFailed):
    """We did not try, or did not keep what we reached: our own limits or an earlier failure forbid it for now.

    Says nothing about the peer. ``retry_after`` is in seconds where it is known.
    """

    def __init__(self, message: str, reasons: dict[str, str] | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, reasons)
        self.retry_after = retry_after


class NotConnected(NetworkError):
    """There is no live connection to the peer: connect first."""


class StreamReset(NetworkError):
    """The peer, or the connection under the stream, ended it before it was finished."""


class TooManyStreams(NetworkError):
    """As many streams are open with the peer as our own limits allow: wait for one to end."""


class RequestTimeout(NetworkError):
    """The peer did not answer within the deadline."""


class RemoteError(NetworkError):
    """The peer answered that it cannot do what was asked."""


class ProtocolNotSupported(UsageError):
    """The peer does not speak that protocol."""


class ProtocolViolation(PeerError):
    """The peer sent what the protocol forbids; it is penalised."""


class FrameTooLarge(ProtocolViolation):
    """A length prefix announced more than the protocol allows; nothing was allocated for it."""
