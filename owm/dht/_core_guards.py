"""What keeps strangers in bounds: quotas, the reputation of subnets, the puzzle for servers, a memory of peers."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from random import Random
from typing import Final

from owm.dht._core_types import Contact, DhtParams, GroupOf

__all__ = ["PeerMemory", "QueryQuota", "Reputation", "check_proof", "solve_puzzle"]

_DAY: Final = 86_400.0
_BLAME_HALF_LIFE: Final = 600.0
_MAX_TRACKED: Final = 4096
_GIVEN_UP: Final = 2  # failures of a remembered peer


class QueryQuota:
    """Inbound queries per peer, by the generic cell rate algorithm: one float per active peer."""

    __slots__ = ("_arrivals", "_burst", "_interval")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate if rate > 0 else 0.0
        self._burst = burst * self._interval
        self._arrivals: dict[bytes, float] = {}

    def admits(self, peer: bytes, now: float) -> bool:
        """Whether the peer may ask once more now."""
        if not self._interval:
            return True
        arrival = self._arrivals.get(peer, now)
        arrival = max(arrival, now)
        if arrival - now > self._burst:
            return False
        self._arrivals[peer] = arrival + self._interval
        if len(self._arrivals) > _MAX_TRACKED:
            self._arrivals = {p: at for p, at in self._arrivals.items() if at > now}
            while len(self._arrivals) > _MAX_TRACKED:
                del self._arrivals[next(iter(self._arrivals))]
        return True


class Reputation:
    """The standing of subnet groups, so that a new id does not wash an operator clean (D17).

    Blame fades with a half-life of ten minutes. New ids admitted from one group are counted with a half-life of a day:
    whoever rotates ids soon finds the table closed.
    """

    __slots__ = ("_blame", "_newcomers", "_params")

    def __init__(self, params: DhtParams) -> None:
        self._params = params
        self._blame: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._newcomers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @staticmethod
    def _faded(scores: OrderedDict[str, tuple[float, float]], group: str, half_life: float, now: float) -> float:
        score, at = scores.get(group, (0.0, now))
        return score * 0.5 ** ((now - at) / half_life) if score else 0.0

    @staticmethod
    def _note(scores: OrderedDict[str, tuple[float, float]], group: str, score: float, now: float) -> None:
        scores[group] = (score, now)
        scores.move_to_end(group)
        if len(scores) > _MAX_TRACKED:
            scores.popitem(last=False)

    def blame(self, groups: Iterable[str], weight: float, now: float) -> None:
        """Members of these groups misbehaved; 10 in all closes the table to a group for a while."""
        for group in groups:
            self._note(self._blame, group, self._faded(self._blame, group, _BLAME_HALF_LIFE, now) + weight, now)

    def admits(self, groups: Iterable[str], now: float) -> bool:
        """Whether a newcomer from these groups may enter the table."""
        return all(
            self._faded(self._blame, group, _BLAME_HALF_LIFE, now) < 10.0
            and self._faded(self._newcomers, group, _DAY, now) < self._params.newcomers_per_group
            for group in groups
        )

    def entered(self, groups: Iterable[str], now: float) -> None:
        """A newcomer from these groups entered the table."""
        for group in groups:
            self._note(self._newcomers, group, self._faded(self._newcomers, group, _DAY, now) + 1.0, now)


def _puzzle_digest(network: str, peer: bytes, proof: bytes) -> int:
    head = f"owm-kad-server:{network}:".encode()
    return int.from_bytes(hashlib.sha256(head + len(peer).to_bytes(1, "big") + peer + proof).digest(), "big")


def check_proof(network: str, peer: bytes, proof: bytes, bits: int) -> bool:
    """Whether ``proof`` shows the work that makes an id dear (S/Kademlia's static puzzle, for servers only; D6)."""
    return bits == 0 or (len(proof) == 8 and _puzzle_digest(network, peer, proof) >> (256 - bits) == 0)


def solve_puzzle(network: str, peer: bytes, bits: int) -> bytes:
    """A proof for our id; takes 2**bits hashes on average, so run it in a thread."""
    if bits == 0:
        return b""
    number = 0
    while not check_proof(network, peer, proof := number.to_bytes(8, "big"), bits):
        number += 1
    return proof


class _Remembered:
    __slots__ = ("contact", "failures", "groups")

    def __init__(self, contact: Contact, groups: tuple[str, ...]) -> None:
        self.contact = contact
        self.groups = groups
        self.failures = 0  # since it was noted


class PeerMemory:
    """Peers that were good once, diverse by subnet: seeds after a restart and strangers to ask after a split.

    Whoever does not answer sinks: the others are asked first, and it goes first when there is no room. It is forgotten
    after a few failures, unless few are left: after a long partition the memory is the only way back.
    """

    __slots__ = ("_crowds", "_group_of", "_known", "_params")

    def __init__(self, params: DhtParams, group_of: GroupOf | None) -> None:
        self._params = params
        self._group_of = group_of
        self._known: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._crowds: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, contact: Contact, groups: tuple[str, ...] | None = None) -> None:
        """Remember a peer; of a crowded subnet the ones known longest stay, of all the ones noted last.

        ``groups``: what it was seen to count under; None: as its addresses say.
        """
        if not contact.addresses or self._params.remembered <= 0:
            return
        if groups is None:
            group_of = self._group_of
            found = {g for a in contact.addresses if (g := group_of(a)) is not None} if group_of is not None else ()
            groups = tuple(found)
        known = self._known.get(contact.id)
        if known is not None:
            self.forget(contact.id)  # it may count under other groups now, and is the latest in any case
        elif any(self._crowds[group] >= self._params.table_per_group for group in groups):
            return
        self._known[contact.id] = _Remembered(contact, groups)
        self._crowds.update(groups)
        if len(self._known) > self._params.remembered:
            worst = max(self._known.values(), key=lambda one: one.failures)  # the oldest of them
            self.forget(worst.contact.id)

    def failed(self, peer: bytes) -> None:
        """It did not answer, while others do."""
        known = self._known.get(peer)
        if known is not None:
            known.failures += 1
            if known.failures >= _GIVEN_UP and len(self._known) > 2 * self._params.k:
                self.forget(peer)

    def forget(self, peer: bytes) -> None:
        known = self._known.pop(peer, None)
        if known is not None:
            for group in known.groups:
                self._crowds[group] -= 1
                if not self._crowds[group]:
                    del self._crowds[group]

    def contacts(self) -> list[Contact]:
        """Oldest first."""
        return [known.contact for known in self._known.values()]

    def entries(self) -> list[tuple[Contact, tuple[str, ...]]]:
        """Each with the groups that it counts under, oldest first."""
        return [(known.contact, known.groups) for known in self._known.values()]

    def sample(self, random: Random, count: int) -> list[Contact]:
        """Some that have failed least, at random among equals."""
        known = list(self._known.values())
        random.shuffle(known)
        known.sort(key=lambda one: one.failures)
        return [one.contact for one in known[:count]]
