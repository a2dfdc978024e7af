"""The books of one Yamux stream: windows, what is queued, which sides have ended."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["INITIAL_WINDOW", "StreamState"]

INITIAL_WINDOW: Final = 256 * 1024  #: bytes each side may send on a new stream, fixed by the specification


class StreamState:
    """What both directions of a stream may still do; owned by :class:`~owm.net._core_yamux.Yamux`."""

    __slots__ = (
        "_grown_at",
        "_owed",
        "_window",
        "bulk",
        "fin_sent",
        "finished",
        "finishing",
        "flags",
        "id",
        "inbound",
        "queue",
        "queued",
        "receive_window",
        "scheduled",
        "send_window",
    )

    def __init__(self, stream_id: int, *, inbound: bool, bulk: bool, flags: int) -> None:
        self.id = stream_id
        self.inbound = inbound
        self.bulk = bulk
        self.flags = flags  #: SYN or ACK until the first frame has carried it
        self.send_window = INITIAL_WINDOW
        self.receive_window = INITIAL_WINDOW  #: what the peer may still send
        self.queue: deque[bytes | memoryview] = deque()
        self.queued = 0  #: bytes in the queue
        self.scheduled = False
        self.finishing = False  #: we write no more
        self.fin_sent = False
        self.finished = False  #: the peer writes no more
        self._window = INITIAL_WINDOW
        self._owed = 0
        self._grown_at = float("-inf")

    def take_flags(self) -> int:
        flags, self.flags = self.flags, 0
        return flags

    def take(self, size: int, out: list[bytes | memoryview]) -> None:
        """Move ``size`` queued bytes to ``out`` and use up the send window."""
        self.send_window -= size
        self.queued -= size
        queue = self.queue
        while size:
            first = queue.popleft()
            if len(first) > size:
                view = memoryview(first)
                queue.appendleft(view[size:])
                first = view[:size]
            out.append(first)
            size -= len(first)

    def consume(self, size: int, now: float, round_trip: float | None, largest: int, quick: float) -> int:
        """The reader took ``size`` bytes; returns the window to grant the peer, 0 while it is not worth a frame.

        The window doubles when half of it was used up within two round trips: the peer is waiting for us then.
        """
        self._owed += size
        if self._owed < self._window // 2:
            return 0
        grant, self._owed = self._owed, 0
        if round_trip is not None and round_trip > quick and now - self._grown_at < 2 * round_trip:
            grown = max(0, min(self._window, largest - self._window))
            self._window += grown
            grant += grown
        self._grown_at = now
        self.receive_window += grant
        return grant

    def clear(self) -> None:
        self.queue.clear()
        self.queued = 0
