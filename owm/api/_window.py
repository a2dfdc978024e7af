"""A sliding window over request times (SRS-API-02): an exact log, one timestamp per request counted.

The log is exact: at no moment do more than ``limit`` requests lie within the last ``period`` seconds. It costs at most
``limit`` floats per caller, and callers whose window has emptied are forgotten.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

__all__ = ["SlidingWindow"]


class SlidingWindow:
    """Counts requests per caller over the last ``period`` seconds.

    Args:
        period: length of the window, seconds.
        max_callers: callers remembered at once; when exceeded, the one that asked longest ago is forgotten.
    """

    def __init__(self, period: float = 86_400.0, max_callers: int = 100_000) -> None:
        self._period = period
        self._max_callers = max_callers
        self._log: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._log)

    def take(self, caller: str, limit: int, now: float) -> int | None:
        """Count one request.

        Args:
            caller: whom to count it for.
            limit: requests allowed within the period; 0 for no limit.
            now: seconds on a clock that never goes backwards.

        Returns:
            None if it is allowed (and counted), otherwise the whole seconds until one will be.
        """
        if limit <= 0:
            return None
        times = self._log.setdefault(caller, deque())
        self._log.move_to_end(caller)
        self._expire(times, now)
        if len(times) >= limit:
            # With a limit that was lowered meanwhile, several have to leave before one may come.
            return max(1, math.ceil(times[len(times) - limit] + self._period - now))
        times.append(now)
        self._forget(now)
        return None

    def restore(self, caller: str, at: float) -> None:
        """Count a request of earlier, as after a restart; the oldest come first."""
        self._log.setdefault(caller, deque()).append(at)
        self._log.move_to_end(caller)
        self._forget(at)

    def give_back(self, caller: str, at: float) -> bool:
        """Count the request that was taken at that time no longer; False if it was not counted."""
        times = self._log.get(caller)
        if times is None or at not in times:
            return False
        times.remove(at)
        if not times:
            del self._log[caller]
        return True

    def remaining(self, caller: str, limit: int, now: float) -> int | None:
        """How many more requests are allowed now; None where there is no limit."""
        if limit <= 0:
            return None
        times = self._log.get(caller)
        if times is None:
            return limit
        self._expire(times, now)
        return max(0, limit - len(times))

    def _expire(self, times: deque[float], now: float) -> None:
        while times and times[0] <= now - self._period:
            times.popleft()

    def _forget(self, now: float) -> None:
        while self._log:
            caller, times = next(iter(self._log.items()))
            if len(self._log) <= self._max_callers and times and times[-1] > now - self._period:
                return
            del self._log[caller]
