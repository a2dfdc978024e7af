"""Reliability of workers (SRS-SCHED-04): (successful / total) * uptime, over a rolling window of seven days."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from owm.identity import PeerId

__all__ = ["Reliability"]

WINDOW_HOURS: Final = 7 * 24


class _Hour(msgspec.Struct, array_like=True):
    """What happened with one peer in one hour."""

    hour: int
    succeeded: int = 0
    total: int = 0
    up: int = 0
    samples: int = 0


class Reliability:
    """Outcomes and presence per peer, in hours; the longest unheard are forgotten beyond ``capacity``.

    Times are unix seconds, so that the window spans restarts.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._peers: OrderedDict[PeerId, list[_Hour]] = OrderedDict()

    def outcome(self, peer: PeerId, success: bool, now: float) -> None:
        """A task ended, well or through the worker's fault."""
        hour = self._hour(peer, now)
        hour.total += 1
        hour.succeeded += success

    def presence(self, peer: PeerId, up: bool, now: float) -> None:
        """One regular look at whether the peer is there."""
        hour = self._hour(peer, now)
        hour.samples += 1
        hour.up += up

    def score(self, peer: PeerId, now: float) -> float:
        """Between 0 and 1; a factor for which there is no observation yet counts as 1."""
        succeeded, total, up, samples = self._sums(peer, now)
        return (succeeded / total if total else 1.0) * (up / samples if samples else 1.0)

    def weight(self, peer: PeerId, now: float) -> float:
        """The score with a weak prior of two successes, so that one early failure does not end a worker's career."""
        succeeded, total, up, samples = self._sums(peer, now)
        return (succeeded + 2) / (total + 2) * ((up + 2) / (samples + 2))

    def known(self) -> list[PeerId]:
        return list(self._peers)

    def dump(self, peer: PeerId) -> bytes:
        """What to store for a peer."""
        return msgspec.msgpack.encode(self._peers.get(peer, []))

    def load(self, peer: PeerId, data: bytes) -> None:
        """Take back what :meth:`dump` gave; raises msgspec.DecodeError."""
        self._peers[peer] = msgspec.msgpack.decode(data, type=list[_Hour])[-WINDOW_HOURS:]

    def _hour(self, peer: PeerId, now: float) -> _Hour:
        hours = self._peers.setdefault(peer, [])
        self._peers.move_to_end(peer)
        if len(self._peers) > self._capacity:
            self._peers.popitem(last=False)
        current = int(now // 3600)
        if not hours or hours[-1].hour < current:  # a clock set back goes on in the newest hour
            hours.append(_Hour(current))
            while hours[0].hour <= current - WINDOW_HOURS:
                hours.pop(0)
        return hours[-1]

    def _sums(self, peer: PeerId, now: float) -> tuple[int, int, int, int]:
        since = int(now // 3600) - WINDOW_HOURS
        live = [hour for hour in self._peers.get(peer, ()) if hour.hour > since]
        return (
            sum(hour.succeeded for hour in live),
            sum(hour.total for hour in live),
            sum(hour.up for hour in live),
            sum(hour.samples for hour in live),
        )
