"""When and in which order a peer's addresses are dialled: policy only, no I/O and no clock.

Addresses are raced with a stagger (RFC 8305, "happy eyeballs"), each with its own timeout. Failures back off
exponentially per peer, and so do connections that end as soon as they are up: a peer that flaps is left in peace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from owm.identity import PeerId
from owm.net._groups import ONION_GROUP, group_of, is_local
from owm.net._limits import NetworkLimits

__all__ = ["Attempt", "DialPlan", "Dialer"]

_SLOW_WAYS: Final = 3.0  # a circuit or an onion service is given this many times the usual timeout
_JITTER: Final = 0.25


@dataclass(frozen=True, slots=True)
class Attempt:
    """One address to try."""

    address: str
    start: float  #: seconds after the first attempt's start; sooner when an earlier one has failed
    timeout: float  #: seconds for this one


@dataclass(frozen=True, slots=True)
class DialPlan:
    """What to try. Either ``refusal`` says why not at all, or there is at least one attempt."""

    key: Hashable  #: for :meth:`Dialer.failed`
    attempts: tuple[Attempt, ...] = ()
    max_racing: int = 1
    refusal: str | None = None
    retry_after: float | None = None  #: seconds until the refusal ends, where it ends by itself


@dataclass(slots=True)
class _History:
    failures: int = 0
    not_before: float = field(default=float("-inf"))


class Dialer:
    """Plans dials and remembers how they went.

    Args:
        limits: timeouts, stagger, back-off.
        random: spreads the back-offs so that peers do not return in step.
        capacity: peers remembered; the longest untouched are forgotten first.
    """

    def __init__(self, limits: NetworkLimits, random: Random, capacity: int = 10_000) -> None:
        self._limits = limits
        self._random = random
        self._capacity = max(1, capacity)
        self._histories: OrderedDict[Hashable, _History] = OrderedDict()

    def plan(self, peer: PeerId | None, addresses: Sequence[str], now: float) -> DialPlan:
        """What to dial now. Without a peer id the addresses themselves are what backs off."""
        ordered = _in_order(dict.fromkeys(addresses))[: self._limits.max_addresses]
        key: Hashable = peer if peer is not None else tuple(sorted(ordered))
        if not ordered:
            return DialPlan(key, refusal="no address is known")
        wait = self.wait(key, now)
        if wait > 0:
            return DialPlan(key, refusal=f"failed before: not dialled for another {wait:.1f} s", retry_after=wait)
        return DialPlan(
            key,
            tuple(
                Attempt(address, index * self._limits.dial_stagger, self._timeout(address))
                for index, address in enumerate(ordered)
            ),
            self._limits.max_racing,
        )

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until the peer (or the tuple of addresses) may be dialled again; 0 when it may."""
        history = self._histories.get(key)
        return max(0.0, history.not_before - now) if history else 0.0

    def failures(self, key: Hashable) -> int:
        """Failures in a row."""
        history = self._histories.get(key)
        return history.failures if history else 0

    def failed(self, key: Hashable, now: float) -> None:
        """All addresses failed."""
        history = self._touch(key)
        history.failures += 1
        # The exponent is capped before it is used: 2.0**1024 overflows.
        wait = min(self._limits.longest_backoff, self._limits.first_backoff * 2.0 ** min(history.failures - 1, 64))
        history.not_before = now + wait * self._random.uniform(1 - _JITTER, 1 + _JITTER)

    def succeeded(self, peer: PeerId, now: float) -> None:
        """We are connected. Past failures stay on record until the connection has lasted, see :meth:`ended`."""
        if history := self._histories.get(peer):
            history.not_before = now

    def ended(self, peer: PeerId, *, opened: float, now: float, wanted: bool) -> None:
        """A connection that we had dialled is gone; ``wanted`` when we closed it ourselves."""
        if now - opened >= self._limits.stable_after:
            self._histories.pop(peer, None)
        elif not wanted:
            self.failed(peer, now)

    def _timeout(self, address: str) -> float:
        slow = group_of(address) in (ONION_GROUP, "relay")
        return self._limits.dial_timeout * (_SLOW_WAYS if slow else 1.0)

    def _touch(self, key: Hashable) -> _History:
        history = self._histories.setdefault(key, _History())
        self._histories.move_to_end(key)
        if len(self._histories) > self._capacity:
            self._histories.popitem(last=False)
        return history


def _in_order(addresses: Iterable[str]) -> list[str]:
    """Direct before relayed before onion; local ones first (a dead one fails at once); IPv6 and IPv4 in turn."""
    families: dict[tuple[int, bool], list[str]] = {}
    for address in addresses:
        families.setdefault((_distance(address), address.startswith("/ip4/")), []).append(address)
    ordered: list[str] = []
    for distance in sorted({distance for distance, _ in families}):
        six, four = families.get((distance, False), []), families.get((distance, True), [])
        for index in range(max(len(six), len(four))):
            ordered += six[index : index + 1] + four[index : index + 1]
    return ordered


def _distance(address: str) -> int:
    group = group_of(address)
    if group == "relay":
        return 2
    if group == ONION_GROUP:
        return 3
    return 0 if is_local(address) else 1
