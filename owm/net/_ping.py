"""The ping under way on a connection, and whether the peer can be held to have missed it: no I/O and no clock."""

from __future__ import annotations

from typing import Final

__all__ = ["SHORTEST_INTERVAL", "PingClock"]

SHORTEST_INTERVAL: Final = 0.1  #: seconds between pings that a peer must bear


class PingClock:
    """Times one ping after another.

    On a slow link a ping waits behind what was sent before it. So silence counts from the moment when the ping has
    reached the other machine, and until then from the last byte that did.
    """

    __slots__ = ("_delivered", "_end", "_progress", "_sent", "_value", "began", "queued", "under_way")

    def __init__(self) -> None:
        self.under_way = False
        self.queued = False  #: and not yet handed to the socket
        self.began = 0.0
        self._value = 0
        self._sent = 0.0
        self._end = 0  # of the ping, in the bytes sent on the connection
        self._delivered = 0
        self._progress = 0.0

    def begin(self, now: float) -> int:
        """A ping is queued; returns its value."""
        self._value = (self._value + 1) & 0xFFFFFFFF
        self.under_way = self.queued = True
        self.began = self._sent = self._progress = now
        return self._value

    def taken(self, now: float, end: int) -> None:
        """It goes to the socket now, and ends at byte ``end`` of what the connection sends."""
        self.queued = False
        self._sent, self._end = now, end

    def answered(self, value: int, now: float) -> float | None:
        """The round trip in seconds; None where this is no answer to the ping under way."""
        if not self.under_way or self.queued or value != self._value:
            return None
        self.under_way = False
        return now - self._sent

    def silence(self, now: float, heard: float, delivered: int) -> float:
        """Seconds for which nothing has shown that the peer is there.

        Args:
            heard: when it last sent anything.
            delivered: bytes of the connection that have reached it by now.
        """
        arrived = not self.queued and self._delivered >= self._end
        if delivered > self._delivered and not arrived:
            self._progress = now
        self._delivered = delivered
        return now - max(self.began, heard, self._progress)
