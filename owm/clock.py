"""Clocks, passed in wherever time matters so that tests and the simulator can bring their own."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Wall time for what others will read, monotonic time for what is measured here."""

    def time(self) -> float:
        """Seconds since the Unix epoch; may jump when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes backwards."""


class SystemClock:
    """The machine's own clocks."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to, for tests and simulations.

    Args:
        start: the wall time in seconds since the epoch; monotonic time starts at zero.
        skew: seconds added to wall time only, for tests of clock skew.
    """

    def __init__(self, start: float = 1_800_000_000.0, skew: float = 0.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self.skew = skew

    def time(self) -> float:
        return self._start + self._elapsed + self.skew

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward; raises ValueError for a negative step."""
        if seconds < 0:
            raise ValueError("a clock only moves forward")
        self._elapsed += seconds
