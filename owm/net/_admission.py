"""Which connections may be opened, and which go when there are too many: policy only, no I/O and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, TypeVar

from owm.identity import PeerId
from owm.net._budget import ByteBudget
from owm.net._groups import ONION_GROUP, group_of, is_local
from owm.net._limits import NetworkLimits
from owm.net._penalties import Penalties
from owm.net._quota import QuotaTable, Rate

__all__ = ["HANDSHAKE_BYTES", "Admission"]

_FRUGAL: Final = 4  # unprotected connections that are kept when the day's bytes are used up
# A peer that leaves and comes back for ever is turned away for a while (20 returns in a row are in order).
_RETURNS: Final = Rate(per_second=0.5, burst=30)
_SHARED: Final = frozenset({ONION_GROUP, "relay", "dns", "other"})  # groups of many operators
_MOMENT: Final = 2.0  # seconds after which who has nothing to say makes room for a newcomer
_SHARED_PART: Final = 5  # of the connections that we open, one of those groups may hold a fifth
HANDSHAKE_BYTES: Final = 1500  #: what a handshake costs, about, whoever it is with


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
        self._outbound: Counter[str] = Counter()  # by group
        self._handshakes: Counter[str] = Counter()  # by group
        self._shaking: dict[Hashable, str] = {}  # handshakes under way and their groups, the oldest first
        self._peers: Counter[PeerId] = Counter()
        self._inbound_total = 0
        self._tags: dict[PeerId, set[str]] = {}
        self._returns = QuotaTable(_RETURNS)
        self.budget = ByteBudget(limits.max_bytes_per_day) if limits.max_bytes_per_day else None
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

    def begin_handshake(self, key: Hashable, address: str, now: float) -> str | None:
        """An unauthenticated inbound connection from ``address``; pair with :meth:`end_handshake` unless refused.

        Before the handshake we cannot know who it is, so connections that have not authenticated take no slots of
        those that have: they have places of their own, see :meth:`crowded_out`.
        """
        group = group_of(address)
        if not self._is_exempt(address) and self._handshakes[group] >= self._limits.max_handshakes_per_subnet:
            return self._refuse("too many handshakes under way from that subnet")
        if len(self._slots) >= self._limits.max_connections:
            return self._refuse("all connections are taken")
        if self.budget is not None:
            if self.budget.wait(now) > 0:
                return self._refuse("the day's bytes are used up")
            self.budget.charge(HANDSHAKE_BYTES, now)
        self._handshakes[group] += 1
        self._shaking[key] = group
        return None

    def crowded_out(self) -> Hashable | None:
        """The handshake to break off because there are too many: the oldest of the group that has the most."""
        if len(self._shaking) <= self._limits.max_handshakes:
            return None
        most = max(self._handshakes.values())
        self.refused += 1
        return next(key for key, group in self._shaking.items() if self._handshakes[group] == most)

    def end_handshake(self, key: Hashable) -> None:
        _decrement(self._handshakes, self._shaking.pop(key))

    def admit(self, peer: PeerId, address: str, *, inbound: bool, now: float) -> str | None:
        """Whether an authenticated connection may stay. Call :meth:`opened` right after when it may."""
        limits = self._limits
        if self._penalties.is_banned(peer, now):
            return self._refuse("banned")
        if self._peers[peer] >= limits.max_per_peer:
            return self._refuse("too many connections with that peer")
        if self.is_protected(peer):
            return self._refuse("all connections are taken") if len(self._slots) >= limits.max_connections else None
        if not self._has_room(len(self._slots), limits.max_connections - limits.reserved_protected, now):
            return self._refuse("all connections are taken")
        if not inbound:
            if not self._is_exempt(address) and self._outbound[group_of(address)] >= self._outbound_share(address):
                return self._refuse("enough connections to that subnet")
            return None
        if not self._has_room(self._inbound_total, limits.max_inbound, now):
            return self._refuse("all inbound connections are taken")
        if not self._is_exempt(address) and self._inbound[group_of(address)] >= limits.max_per_subnet:
            return self._refuse("too many connections from that subnet")
        if self.is_spent(now):
            return self._refuse("the day's bytes are used up")
        if not self._returns.take(peer, 1, now):
            return self._refuse("reconnects too often")
        return None

    def opened(self, key: Hashable, peer: PeerId, address: str, *, inbound: bool, now: float) -> None:
        """Count a connection that was admitted."""
        group = "local" if self._is_exempt(address) else group_of(address)
        self._slots[key] = _Slot(peer, group, inbound, now, now)
        self._peers[peer] += 1
        (self._inbound if inbound else self._outbound)[group] += 1
        self._inbound_total += inbound

    def used(self, key: Hashable, now: float) -> None:
        """Something went over a stream of the connection: it is not idle."""
        slot = self._slots.get(key)
        if slot is not None:
            slot.used = now

    def closed(self, key: Hashable) -> None:
        """Forget a connection; unknown ones are ignored."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        _decrement(self._peers, slot.peer)
        self._inbound_total -= slot.inbound
        _decrement(self._inbound if slot.inbound else self._outbound, slot.group)

    def group(self, address: str) -> str | None:
        """The subnet group that shares caps and quotas, or None where the address is exempt."""
        return None if self._is_exempt(address) else group_of(address)

    def is_spent(self, now: float) -> bool:
        """Whether the day's bytes are used up; never where there is no budget."""
        return self.budget is not None and self.budget.is_spent(now)

    def bytes_left(self, now: float) -> int | None:
        """What the day's budget still allows; None where there is none."""
        return None if self.budget is None else self.budget.left(now)

    def to_trim(self, now: float) -> list[Hashable]:
        """The connections to close: none up to the high-water mark, else down to the low-water mark.

        The worst scores go first, then inbound before outbound, members of crowded subnets, the longest idle.
        Protected peers, and connections younger than the grace period, stay; but a newcomer that was admitted to a
        full house takes the place of one that came from outside and is idle.
        """
        chosen = self._beyond_marks(now)
        limits = self._limits
        full = max(
            len(self._slots) - (limits.max_connections - limits.reserved_protected),
            self._inbound_total - limits.max_inbound,
        )
        if full > len(chosen):
            chosen += [key for key in self._replaceable(now) if key not in chosen][: full - len(chosen)]
        return chosen

    def _beyond_marks(self, now: float) -> list[Hashable]:
        low, high = self._limits.low_water, self._limits.high_water
        if self.is_spent(now):  # the day's bytes are used up: a few connections are enough to stay in touch
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

    def _has_room(self, taken: int, most: int, now: float) -> bool:
        """Whether one more of ``most`` places is free, or can be: one newcomer at a time may displace an idle one."""
        if taken < most:
            return True
        beyond = taken > most or len(self._slots) + 1 >= self._limits.max_connections
        return not beyond and bool(self._replaceable(now))

    def _replaceable(self, now: float) -> list[Hashable]:
        """Connections that others opened and that are idle for a moment, the least wanted first."""
        idle = [
            (self._penalties.score(slot.peer, now), slot.used, order, key)
            for order, (key, slot) in enumerate(self._slots.items())
            if slot.inbound and now - slot.used >= _MOMENT and not self.is_protected(slot.peer)
        ]
        idle.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in idle]

    def _outbound_share(self, address: str) -> int:
        """Connections that we open to one subnet group at most."""
        share = self._limits.max_per_subnet
        return max(share, self._limits.max_connections // _SHARED_PART) if group_of(address) in _SHARED else share

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
