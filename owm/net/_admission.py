"""Which connections may be opened, and which go when there are too many: policy only, no I/O and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, TypeVar

from owm.identity import PeerId
from owm.net._groups import group_of, is_local
from owm.net._limits import NetworkLimits
from owm.net._penalties import Penalties
from owm.net._quota import Quota, QuotaTable, Rate

__all__ = ["Admission"]

_DAY: Final = 86_400.0
_FRUGAL: Final = 4  # unprotected connections that are kept when the day's bytes are used up
# A peer that leaves and comes back for ever is turned away for a while (20 returns in a row are in order).
_RETURNS: Final = Rate(per_second=0.5, burst=30)


@dataclass(slots=True)
class _Slot:
    peer: PeerId
    group: str
    inbound: bool
    opened: float
    used: float


class Admission:
    """Keeps account of live connections under :class:`NetworkLimits`.

    Every method that may refuse returns None when all is well and otherwise the reason in words. Connections are known
    by any hashable key of the caller's.

    Args:
        limits: the budget.
        penalties: consulted for bans, and for who is trimmed first.
    """

    def __init__(self, limits: NetworkLimits, penalties: Penalties) -> None:
        self._limits = limits
        self._penalties = penalties
        self._slots: dict[Hashable, _Slot] = {}
        self._inbound: Counter[str] = Counter()  # by group
        self._handshakes: Counter[str] = Counter()  # by group
        self._peers: Counter[PeerId] = Counter()
        self._inbound_total = 0
        self._tags: dict[PeerId, set[str]] = {}
        self._returns = QuotaTable(_RETURNS)
        day = limits.max_bytes_per_day
        self._bytes = Quota(Rate(day / _DAY, day)) if day else None
        self.refused = 0  #: connections turned away since start

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def inbound(self) -> int:
        """Live connections that others opened."""
        return self._inbound_total

    def protect(self, peer: PeerId, tag: str, protected: bool) -> None:
        """Exempt a peer from trimming while at least one tag is set."""
        tags = self._tags.setdefault(peer, set())
        (tags.add if protected else tags.discard)(tag)
        if not tags:
            del self._tags[peer]

    def is_protected(self, peer: PeerId) -> bool:
        return peer in self._tags

    def begin_handshake(self, address: str) -> str | None:
        """An unauthenticated inbound connection from ``address``; pair with :meth:`end_handshake` unless refused."""
        group = group_of(address)
        if not self._is_exempt(address) and self._handshakes[group] >= self._limits.max_handshakes_per_subnet:
            return self._refuse("too many handshakes under way from that subnet")
        # Before the handshake we cannot know who it is: the slots kept for protected peers are open to all so far.
        if len(self._slots) + self._handshakes.total() >= self._limits.max_connections:
            return self._refuse("all connections are taken")
        self._handshakes[group] += 1
        return None

    def end_handshake(self, address: str) -> None:
        group = group_of(address)
        self._handshakes[group] -= 1
        if self._handshakes[group] <= 0:
            del self._handshakes[group]

    def admit(self, peer: PeerId, address: str, *, inbound: bool, now: float) -> str | None:
        """Whether an authenticated connection may stay. Call :meth:`opened` right after when it may."""
        limits = self._limits
        if self._penalties.is_banned(peer, now):
            return self._refuse("banned")
        if self._peers[peer] >= limits.max_per_peer:
            return self._refuse("too many connections with that peer")
        if self.is_protected(peer):
            return self._refuse("all connections are taken") if len(self._slots) >= limits.max_connections else None
        if len(self._slots) >= limits.max_connections - limits.reserved_protected:
            return self._refuse("all connections are taken")
        if not inbound:
            return None
        if self._inbound_total >= limits.max_inbound:
            return self._refuse("all inbound connections are taken")
        if not self._is_exempt(address) and self._inbound[group_of(address)] >= limits.max_per_subnet:
            return self._refuse("too many connections from that subnet")
        if self._bytes is not None and self._bytes.wait(1, now) > 0:
            return self._refuse("the day's bytes are used up")
        if not self._returns.take(peer, 1, now):
            return self._refuse("reconnects too often")
        return None

    def opened(self, key: Hashable, peer: PeerId, address: str, *, inbound: bool, now: float) -> None:
        """Count a connection that was admitted."""
        group = "local" if self._is_exempt(address) else group_of(address)
        self._slots[key] = _Slot(peer, group, inbound, now, now)
        self._peers[peer] += 1
        if inbound:
            self._inbound[group] += 1
            self._inbound_total += 1

    def used(self, key: Hashable, amount: int, now: float) -> None:
        """Bytes went over the connection: keeps it from looking idle, and counts against the day's budget."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.used = now
        if self._bytes is not None:
            self._bytes.charge(amount, now)

    def closed(self, key: Hashable) -> None:
        """Forget a connection; unknown ones are ignored."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        _decrement(self._peers, slot.peer)
        if slot.inbound:
            self._inbound_total -= 1
            _decrement(self._inbound, slot.group)

    def group(self, address: str) -> str | None:
        """The subnet group that shares caps and quotas, or None where the address is exempt."""
        return None if self._is_exempt(address) else group_of(address)

    def bytes_wait(self, now: float) -> float:
        """Seconds until the day's budget has room again; 0 when it has, or when there is none."""
        return self._bytes.wait(1, now) if self._bytes is not None else 0.0

    def bytes_left(self, now: float) -> int | None:
        """What the day's budget still allows; None where there is none."""
        return None if self._bytes is None else self._bytes.left(now)

    def to_trim(self, now: float) -> list[Hashable]:
        """The connections to close: none up to the high-water mark, else down to the low-water mark.

        The worst scores go first, then inbound before outbound, members of crowded subnets, the longest idle.
        Protected peers, and connections younger than the grace period, stay.
        """
        low, high = self._limits.low_water, self._limits.high_water
        if self.bytes_wait(now) > 0:  # the day's bytes are used up: a few connections are enough to stay in touch
            low = high = min(low, _FRUGAL)
        excess = len(self._slots) - low
        if len(self._slots) <= high:
            return []
        crowd = Counter(slot.group for slot in self._slots.values())
        loose = [
            (self._penalties.score(slot.peer, now), not slot.inbound, -crowd[slot.group], slot.used, order, key)
            for order, (key, slot) in enumerate(self._slots.items())
            if not self.is_protected(slot.peer) and now - slot.opened >= self._limits.grace_period
        ]
        loose.sort(key=lambda entry: entry[:5])
        return [entry[5] for entry in loose[:excess]]

    def _is_exempt(self, address: str) -> bool:
        return self._limits.exempt_local and is_local(address)

    def _refuse(self, reason: str) -> str:
        self.refused += 1
        return reason


_Key = TypeVar("_Key", bound=Hashable)


def _decrement(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
