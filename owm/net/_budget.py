"""How many bytes may pass in a day, and what still may when they are used up: no I/O and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from owm.net._quota import Quota, Rate

__all__ = ["ByteBudget"]

_DAY: Final = 86_400.0
_SLOT: Final = 600.0  # seconds whose bytes are counted together
# What keeps a peer in the network when the day's bytes are used up: this share of them a day, and that share at once.
_CONTROL: Final = 0.03
_BURST: Final = 0.01
_LEAST_BURST: Final = 4096.0


class ByteBudget:
    """Counts the bytes of the last 24 hours, whichever way they went.

    Args:
        per_day: bytes that may pass in any 24 hours.
    """

    def __init__(self, per_day: int) -> None:
        self.per_day = per_day
        self._slots: deque[list[int]] = deque()  # number of the slot, bytes in it
        self._total = 0
        self._control = Quota(Rate(per_day * _CONTROL / _DAY, max(per_day * _BURST, _LEAST_BURST)))

    def charge(self, amount: int, now: float) -> None:
        """Bytes have passed."""
        number, slots = int(now // _SLOT), self._slots
        if not slots or slots[-1][0] < number:
            self._forget(now)
            slots.append([number, 0])
        slots[-1][1] += amount
        self._total += amount
        if self._total > self.per_day:
            self._control.charge(amount, now)

    def is_spent(self, now: float) -> bool:
        """Whether the day's bytes are used up: nothing but control traffic may pass."""
        if self._total < self.per_day:
            return False
        self._forget(now)
        return self._total >= self.per_day

    def wait(self, now: float) -> float:
        """Seconds until more may pass: 0 unless the day's bytes and what is left for control traffic are used up."""
        return self._control.wait(1, now) if self.is_spent(now) else 0.0

    def left(self, now: float) -> int:
        """Bytes left of the day's."""
        self._forget(now)
        return self.per_day - self._total

    def export(self, now: float) -> list[tuple[float, int]]:
        """What was counted, to be kept over a restart: how many seconds ago, and bytes."""
        self._forget(now)
        return [(now - number * _SLOT, amount) for number, amount in self._slots]

    def restore(self, counted: Iterable[tuple[float, int]], now: float) -> None:
        """Take in what :meth:`export` gave, its ages grown by the time since; what makes no sense is left out."""
        known = {number: amount for number, amount in self._slots}
        for age, amount in counted:
            if 0 <= age <= _DAY + _SLOT and amount > 0:
                number = int((now - age) // _SLOT)
                known[number] = known.get(number, 0) + amount
        self._slots = deque([number, amount] for number, amount in sorted(known.items()))
        self._total = sum(known.values())
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop the slots that lie wholly more than a day back."""
        while self._slots and (self._slots[0][0] + 1) * _SLOT <= now - _DAY:
            self._total -= self._slots.popleft()[1]
