"""What one peer of a :class:`MemoryNetwork` spends on the others: connections that are trimmed, and the day's bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import trio

from owm.net._admission import Admission
from owm.net._memory_link import Timeline
from owm.net._memory_serving import MemoryServer
from owm.net._memory_stream import HEADER, MemoryConnection

__all__ = ["MemoryBounds"]

_MOST_DEBT: Final = 60.0  # seconds that are waited for a peer that goes on sending when the day's bytes are used up
_TRIM_EVERY: Final = 5.0  # seconds; only where the day's bytes are bounded, for other trims come with connections


class MemoryBounds:
    """Keeps a peer within its limits.

    Args:
        admission: who may stay.
        server: knows which protocols keep us in the network.
        timeline: of the peer.
        connections: those that are live.
    """

    def __init__(
        self,
        admission: Admission,
        server: MemoryServer,
        timeline: Timeline,
        connections: Callable[[], Iterable[MemoryConnection]],
    ) -> None:
        self._admission = admission
        self._server = server
        self._timeline = timeline
        self._connections = connections
        self._bytes_in = self._bytes_out = 0

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes in and out since start."""
        return self._bytes_in, self._bytes_out

    async def keep(self) -> None:
        """Trim now and then, until cancelled."""
        while True:
            await trio.sleep(_TRIM_EVERY)
            self.trim()

    def trim(self) -> None:
        """Close what is above the high-water mark."""
        for extra in self._admission.to_trim(trio.current_time()):
            assert isinstance(extra, MemoryConnection)
            extra.drop("trimmed: too many connections")

    def count(self, connection: MemoryConnection, amount: int) -> float:
        """Bytes received (positive) or sent; returns the seconds to wait before more are sent."""
        self._bytes_in += max(amount, 0)
        self._bytes_out += max(-amount, 0)
        now = trio.current_time()
        if abs(amount) > HEADER:
            self._admission.used(connection, now)
        if (budget := self._admission.budget) is None:
            return 0.0
        before = budget.is_spent(now)
        budget.charge(abs(amount), now)
        wait = budget.wait(now)
        # Neither at once: a frame is under way. And what comes cannot be left unread here, as it can on a socket.
        if not before and budget.is_spent(now):
            self._timeline.at(now, self._economise)
        if amount > HEADER and wait > _MOST_DEBT:
            self._timeline.at(now, partial(connection.drop, "the day's bytes are used up"))
        return wait

    def _economise(self) -> None:
        """The day's bytes are used up: end what is not needed to stay in the network."""
        for connection in list(self._connections()):
            for stream in list(connection.streams.values()):
                if stream.bulk or not self._server.is_control(stream.protocol):
                    stream.reset()
