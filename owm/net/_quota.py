"""Token buckets by the generic cell rate algorithm (ITU-T I.371, annex A): one number of state per bucket."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from owm.identity import PeerId

__all__ = ["PeerQuotas", "Quota", "QuotaTable", "Rate"]

_SWEEP_FROM: Final = 16
_LONGEST_TURN: Final = 30.0  # seconds that a caller of ours waits for its turn
_SUBNET_SHARE: Final = 4  # peers' worth of rate that one subnet group gets, however many ids it has


@dataclass(frozen=True, slots=True)
class Rate:
    """How much is allowed: ``per_second`` on average, up to ``burst`` at once (same unit: calls, bytes, ...)."""

    per_second: float
    burst: float

    def __post_init__(self) -> None:
        if not (self.per_second > 0 and self.burst > 0):
            raise ValueError("a rate and its burst are positive")


class Quota:
    """One bucket, full at the start.

    The state is the theoretical arrival time: when the bucket will be full again.
    """

    __slots__ = ("_full_at", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._full_at = float("-inf")

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` if it is there; otherwise take nothing and return False. More than a burst never fits."""
        if self.wait(amount, now) > 0:
            return False
        self.charge(amount, now)
        return True

    def charge(self, amount: float, now: float) -> None:
        """Take ``amount`` even if it is not there: for what was received already. Later takes wait for the debt."""
        if amount < 0:
            raise ValueError("a quota is only ever used up")
        self._full_at = max(self._full_at, now) + amount / self.rate.per_second

    def refund(self, amount: float) -> None:
        """Give back what was charged and not used after all."""
        self._full_at -= amount / self.rate.per_second

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` would be there; infinite when it exceeds the burst."""
        if amount > self.rate.burst:
            return float("inf")
        wait = max(self._full_at, now) + (amount - self.rate.burst) / self.rate.per_second - now
        # Rounding must not turn "now" into a wait of a picosecond that a caller sleeps for ever and again.
        return wait if wait > 1e-9 * max(1.0, abs(now)) else 0.0

    def left(self, now: float) -> int:
        """What could be taken now; negative while there is a debt."""
        return int(self.rate.burst - max(0.0, self._full_at - now) * self.rate.per_second)

    def is_full(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting this bucket."""
        return self._full_at <= now


class QuotaTable:
    """Buckets by key, made when first used: by ``(peer, protocol)``, by subnet group, by direction.

    Args:
        rate: what each key is allowed.
        capacity: buckets remembered; full ones are forgotten first, then the least recently used.
    """

    def __init__(self, rate: Rate, capacity: int = 10_000) -> None:
        self._rate = rate
        self._capacity = max(1, capacity)
        self._quotas: OrderedDict[Hashable, Quota] = OrderedDict()
        self._sweep_at = _SWEEP_FROM  # full buckets go whenever their number may have doubled: amortised, no timer
        self.refused = 0  #: takes that did not fit, since start

    def __len__(self) -> int:
        return len(self._quotas)

    def take(self, key: Hashable, amount: float, now: float) -> bool:
        """Take from the key's bucket; False (and nothing taken) when it does not fit."""
        allowed = self._get(key, now).take(amount, now)
        self.refused += not allowed
        return allowed

    def charge(self, key: Hashable, amount: float, now: float) -> None:
        """Use up what was received already."""
        self._get(key, now).charge(amount, now)

    def refund(self, key: Hashable, amount: float) -> None:
        """Give back what was charged and not used after all."""
        if known := self._quotas.get(key):
            known.refund(amount)

    def reserve(self, key: Hashable, amount: float, now: float) -> float:
        """Use up ``amount`` and return the seconds to wait before going ahead, which keeps our place among others.

        Infinite, and nothing is used, where that would be longer than half a minute: too many wait already. Whoever
        gives up while it waits calls :meth:`refund`.
        """
        wait = self.wait(key, amount, now)
        if wait > _LONGEST_TURN:
            self.refused += 1
            return float("inf")
        self.charge(key, amount, now)
        return wait

    def wait(self, key: Hashable, amount: float, now: float) -> float:
        """Seconds until ``amount`` fits; for what we send ourselves and may as well delay."""
        known = self._quotas.get(key)
        return known.wait(amount, now) if known else Quota(self._rate).wait(amount, now)

    def _get(self, key: Hashable, now: float) -> Quota:
        quota = self._quotas.get(key)
        if quota is None:
            if len(self._quotas) >= min(self._sweep_at, self._capacity):
                self._forget(now)
                self._sweep_at = max(_SWEEP_FROM, 2 * len(self._quotas))
            quota = self._quotas[key] = Quota(self._rate)
        self._quotas.move_to_end(key)
        return quota

    def _forget(self, now: float) -> None:
        for key in [key for key, quota in self._quotas.items() if quota.is_full(now)]:
            del self._quotas[key]
        # Nobody may buy a fresh bucket by flooding the table cheaply, yet memory is bounded: drop a few, oldest first.
        while len(self._quotas) >= self._capacity:
            self._quotas.popitem(last=False)


class _Tables:
    """The buckets of one rate."""

    def __init__(self, rate: Rate, capacity: int) -> None:
        self.inbound = QuotaTable(rate, capacity)
        self.outbound = QuotaTable(rate, capacity)
        self.groups = QuotaTable(Rate(rate.per_second * _SUBNET_SHARE, rate.burst * _SUBNET_SHARE), capacity)


class PeerQuotas:
    """What peers may ask of us and we of them, by peer and protocol, and by subnet group whatever the ids.

    Args:
        rate: of one peer and protocol, in each direction, where the protocol has none of its own.
        capacity: buckets remembered in each table.
    """

    def __init__(self, rate: Rate, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._usual = _Tables(rate, capacity)
        self._own: dict[str, _Tables] = {}

    def set_rate(self, protocol: str, rate: Rate) -> None:
        """Give a protocol a rate of its own."""
        self._own[protocol] = _Tables(rate, self._capacity)

    @property
    def refused(self) -> int:
        """What came in beyond the quotas since start."""
        return sum(tables.inbound.refused + tables.groups.refused for tables in (self._usual, *self._own.values()))

    def allow(self, peer: PeerId, protocol: str, group: str | None, amount: float, now: float) -> bool:
        """Whether the peer may have ``amount`` now; ``group`` None exempts it from its subnet's share."""
        tables = self._of(protocol)
        if not tables.inbound.take((peer, protocol), amount, now):
            return False
        return group is None or tables.groups.take((group, protocol), amount, now)

    def reserve(self, peer: PeerId, protocol: str, amount: float, now: float) -> float:
        """Use up our own quota with the peer; see :meth:`QuotaTable.reserve`."""
        return self._of(protocol).outbound.reserve((peer, protocol), amount, now)

    def refund(self, peer: PeerId, protocol: str, amount: float) -> None:
        """Give back what was reserved by somebody who gave up."""
        self._of(protocol).outbound.refund((peer, protocol), amount)

    def _of(self, protocol: str) -> _Tables:
        return self._own.get(protocol, self._usual)
