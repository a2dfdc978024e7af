"""What peers are blamed for, and when that ends a connection or bars them.

A score runs from 0 down to -100 and recovers with a half-life of ten minutes. Below -20 a peer is disconnected, below
-50 it is banned, in the manner of lighthouse's peer manager. Scores belong to peers, not to connections, so leaving and
coming back changes nothing; how many are remembered is bounded, the mildest are forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from owm.identity import PeerId
from owm.net._interface import Penalty

__all__ = ["BAN_BELOW", "DISCONNECT_BELOW", "HALF_LIFE", "Penalties", "Standing"]

HALF_LIFE: Final = 600.0  #: seconds in which a score halves
DISCONNECT_BELOW: Final = -20.0
BAN_BELOW: Final = -50.0
_LOWEST: Final = -100.0
_FORGOTTEN_ABOVE: Final = -0.1
_MAX_REASONS: Final = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """How a peer stands after a penalty."""

    score: float  #: 0 down to -100
    disconnect: bool  #: its connections must be closed
    banned: bool  #: it may not connect until the score has recovered


class Penalties:
    """The scores of all peers that have one.

    Args:
        capacity: how many peers are remembered.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ValueError("at least one peer must be remembered")
        self._capacity = capacity
        self._scores: dict[PeerId, tuple[float, float]] = {}  # score, and when it was that
        self._given: dict[tuple[str, str], int] = {}  # by reason and level

    def __len__(self) -> int:
        return len(self._scores)

    def penalise(self, peer: PeerId, penalty: Penalty, reason: str, now: float) -> Standing:
        """Lower a score. ``reason`` is a short constant, never text from the peer: it becomes a metric's label."""
        known = {label for label, _ in self._given}
        label = reason if reason in known or len(known) < _MAX_REASONS else "other"
        key = (label, penalty.name.lower())
        self._given[key] = self._given.get(key, 0) + 1
        self._scores[peer] = (max(_LOWEST, self.score(peer, now) - penalty.value), now)
        if len(self._scores) > self._capacity:
            self._forget(now, keep=peer)
        return self.standing(peer, now)

    def score(self, peer: PeerId, now: float) -> float:
        """The score now, recovery included; 0 for a peer that nothing is held against."""
        known = self._scores.get(peer)
        if known is None:
            return 0.0
        score, then = known
        recovered = float(score * 0.5 ** (max(0.0, now - then) / HALF_LIFE))
        return recovered if recovered < _FORGOTTEN_ABOVE else 0.0

    def standing(self, peer: PeerId, now: float) -> Standing:
        """Where the peer stands now."""
        score = self.score(peer, now)
        return Standing(score, disconnect=score < DISCONNECT_BELOW, banned=score < BAN_BELOW)

    def is_banned(self, peer: PeerId, now: float) -> bool:
        return self.score(peer, now) < BAN_BELOW

    @property
    def reasons(self) -> dict[str, int]:
        """Penalties given since start, by reason."""
        found: dict[str, int] = {}
        for (reason, _), count in self._given.items():
            found[reason] = found.get(reason, 0) + count
        return found

    @property
    def given(self) -> dict[tuple[str, str], int]:
        """Penalties given since start, by reason and level."""
        return dict(self._given)

    def count(self, now: float) -> tuple[int, int]:
        """How many peers something is held against, and how many of them are banned."""
        scores = [self.score(peer, now) for peer in self._scores]
        return sum(score < 0 for score in scores), sum(score < BAN_BELOW for score in scores)

    def standings(self, now: float) -> dict[PeerId, Standing]:
        """Everybody against whom something is held now."""
        found = {peer: self.standing(peer, now) for peer in self._scores}
        return {peer: standing for peer, standing in found.items() if standing.score < 0}

    def export(self, now: float) -> dict[str, float]:
        """Scores as plain data, to be kept over a restart: peer id in base58 to score."""
        return {str(peer): score for peer in self._scores if (score := self.score(peer, now)) < 0}

    def restore(self, scores: Iterable[tuple[str, float]], now: float) -> None:
        """Take in what :meth:`export` gave; what makes no sense or exceeds the capacity is left out."""
        for text, score in scores:
            if len(self._scores) >= self._capacity:
                return
            try:
                peer = PeerId.parse(text)
            except ValueError:
                continue
            if _LOWEST <= score < 0:
                self._scores[peer] = (score, now)

    def _forget(self, now: float, keep: PeerId) -> None:
        """Drop who has recovered; when nobody has, the mildest eighth, so that one flood costs amortised time."""
        for peer in [peer for peer in self._scores if self.score(peer, now) == 0.0]:
            del self._scores[peer]
        if len(self._scores) > self._capacity:
            mildest = sorted((peer for peer in self._scores if peer != keep), key=lambda peer: -self.score(peer, now))
            for peer in mildest[: max(1, self._capacity // 8)]:
                del self._scores[peer]
