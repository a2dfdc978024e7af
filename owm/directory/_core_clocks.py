"""How far our clock is from other peers', judged by when their manifests say that they were made. No I/O, no clock."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from typing import Final

from owm.identity import PeerId

__all__ = ["ClockComparison"]

_PEERS: Final = 256
_EACH: Final = 3  # the least delayed of so many counts
_LEAST_PEERS: Final = 3  # fewer cannot outvote one whose clock is wrong


class ClockComparison:
    """Compares the times at which manifests were issued and arrived.

    A manifest's sequence number is its issuer's clock in milliseconds, a second more at most after a restart.
    """

    def __init__(self) -> None:
        self._offsets: OrderedDict[PeerId, deque[float]] = OrderedDict()

    def note(self, peer: PeerId, sequence: int, arrived: float) -> None:
        """Take in a manifest that came as it was published; ``arrived`` is our own clock, unix seconds."""
        self._offsets.setdefault(peer, deque(maxlen=_EACH)).append(sequence / 1000 - arrived)
        self._offsets.move_to_end(peer)
        if len(self._offsets) > _PEERS:
            self._offsets.popitem(last=False)

    def skew(self) -> float | None:
        """Seconds that our clock is ahead of the median peer's; None while fewer than three can be compared."""
        if len(self._offsets) < _LEAST_PEERS:
            return None
        return -statistics.median(max(offsets) for offsets in self._offsets.values())
