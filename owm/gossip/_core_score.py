"""Peer scores: P1 to P7 of GossipSub v1.1, per peer, recomputed each heartbeat or when a peer misbehaves.

Most peers never do anything wrong. The score of such a calm peer cannot be negative, and nobody asks how positive it is
but now and then: its counters decay when they are next looked at, by the power of the heartbeats gone by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from typing import Final, Generic, TypeVar

from owm.gossip._core_params import ScoreParams, TopicScoreParams

__all__ = ["PeerScore", "Scores"]

P = TypeVar("P", bound=Hashable)

_SETTLE_ALL: Final = 64  # heartbeats after which even calm peers are looked at, so that what decayed is forgotten


class TopicScore:
    """Counters of one peer on one topic."""

    __slots__ = ("first", "grafted", "invalid", "mesh", "mesh_failure", "params")

    def __init__(self, params: TopicScoreParams) -> None:
        self.params = params
        self.grafted: float | None = None  #: when the peer entered our mesh
        self.first = 0.0
        self.mesh = 0.0
        self.mesh_failure = 0.0
        self.invalid = 0.0

    def value(self, now: float) -> float:
        p = self.params
        total = p.first_deliveries_weight * self.first
        if self.grafted is not None:
            total += p.time_in_mesh_weight * min((now - self.grafted) / p.time_in_mesh_quantum, p.time_in_mesh_cap)
            total += p.mesh_deliveries_weight * self.deficit(now) ** 2
        total += p.mesh_failure_weight * self.mesh_failure
        total += p.invalid_weight * self.invalid * self.invalid
        return total * p.weight

    def deficit(self, now: float) -> float:
        p = self.params
        if not p.mesh_deliveries_weight or self.grafted is None or now - self.grafted < p.mesh_deliveries_activation:
            return 0.0
        return max(0.0, p.mesh_deliveries_threshold - self.mesh)

    @property
    def calm(self) -> bool:
        """Whether nothing here can make a score negative."""
        owes = self.params.mesh_deliveries_weight and self.grafted is not None
        return not (self.invalid or self.mesh_failure or owes)

    def decay(self, heartbeats: int, zero: float) -> bool:
        """The decay of so many heartbeats; whether anything is left to remember."""
        p = self.params
        if self.first:
            self.first = _decayed(self.first, p.first_deliveries_decay**heartbeats, zero)
        if self.mesh:
            self.mesh = _decayed(self.mesh, p.mesh_deliveries_decay**heartbeats, zero)
        if self.mesh_failure:
            self.mesh_failure = _decayed(self.mesh_failure, p.mesh_failure_decay**heartbeats, zero)
        if self.invalid:
            self.invalid = _decayed(self.invalid, p.invalid_decay**heartbeats, zero)
        return bool(self.grafted is not None or self.first or self.mesh or self.mesh_failure or self.invalid)


def _decayed(value: float, factor: float, zero: float) -> float:
    value *= factor
    return value if value >= zero else 0.0


class PeerScore:
    """One peer's counters; ``value`` is the score as of the last look, never negative for a calm peer."""

    __slots__ = ("application", "behaviour", "group", "tick", "topics", "value")

    def __init__(self, group: Hashable, tick: int) -> None:
        self.group = group
        self.tick = tick  #: the heartbeat up to which counters have decayed
        self.topics: dict[str, TopicScore] = {}
        self.behaviour = 0.0
        self.application = 0.0
        self.value = 0.0

    @property
    def blemished(self) -> bool:
        """Whether anything is held against the peer, even if its score does not show it yet."""
        return bool(self.value < 0 or self.behaviour or any(t.invalid or t.mesh_failure for t in self.topics.values()))


class Scores(Generic[P]):
    """The scores of all peers, with those of peers that left with something held against them (G8)."""

    __slots__ = ("_groups", "_now", "_params", "_peers", "_restless", "_retained", "_tick")

    def __init__(self, params: ScoreParams) -> None:
        self._params = params
        self._peers: dict[P, PeerScore] = {}
        self._retained: dict[P, tuple[float, PeerScore]] = {}  # by time of leaving
        self._groups: Counter[Hashable] = Counter()
        self._restless: dict[PeerScore, None] = {}  # whose score is or may become negative; in order
        self._tick = 0
        self._now = 0.0  # of the last heartbeat

    def add(self, peer: P, group: Hashable, now: float) -> PeerScore:
        """A peer came; ``group`` is its subnet, None when that does not matter."""
        retained = self._retained.pop(peer, None)
        score = PeerScore(group, self._tick) if retained is None else retained[1]
        score.group = group
        self._peers[peer] = score
        if group is not None:
            self._groups[group] += 1
            self._disturb(group)
        self.refresh(score, now)
        return score

    def remove(self, peer: P, now: float) -> None:
        """A peer left; good conduct is forgotten, the rest is kept for a while."""
        score = self._peers.pop(peer, None)
        if score is None:
            return
        if score.group is not None:
            self._groups[score.group] -= 1
            if not self._groups[score.group]:
                del self._groups[score.group]
        self._catch_up(score)
        for topic in score.topics.values():
            self._leave_mesh(topic, now)
            topic.first = 0.0
        self.refresh(score, now)
        self._restless.pop(score, None)
        if score.blemished:
            self._retained[peer] = (now, score)
            if len(self._retained) > self._params.retain_max:
                del self._retained[next(iter(self._retained))]

    def topic(self, score: PeerScore, topic: str) -> TopicScore:
        if score.tick != self._tick:
            self._catch_up(score)
        found = score.topics.get(topic)
        if found is None:
            params = self._params.topics.get(topic, self._params.topic)
            found = score.topics[topic] = TopicScore(params)
        return found

    def grafted(self, score: PeerScore, topic: str, now: float) -> None:
        self.topic(score, topic).grafted = now
        if score.topics[topic].params.mesh_deliveries_weight:
            self._restless[score] = None

    def pruned(self, score: PeerScore, topic: str, now: float) -> None:
        self._leave_mesh(self.topic(score, topic), now)
        if score.topics[topic].mesh_failure:
            self._restless[score] = None

    def first_delivery(self, score: PeerScore, topic: str) -> None:
        counters = self.topic(score, topic)
        counters.first = min(counters.first + 1, counters.params.first_deliveries_cap)
        self.mesh_delivery(score, topic)

    def mesh_delivery(self, score: PeerScore, topic: str) -> None:
        counters = self.topic(score, topic)
        if counters.grafted is not None:
            counters.mesh = min(counters.mesh + 1, counters.params.mesh_deliveries_cap)

    def invalid(self, score: PeerScore, topic: str, now: float) -> None:
        self.topic(score, topic).invalid += 1
        self.refresh(score, now)

    def misbehaved(self, score: PeerScore, amount: float, now: float) -> None:
        self._catch_up(score)
        score.behaviour += amount
        self.refresh(score, now)

    @property
    def all_calm(self) -> bool:
        """Whether no peer's score can be negative now."""
        return not self._restless

    def settle(self, score: PeerScore) -> float:
        """The score as of the last heartbeat, or the last misdeed since."""
        if score.tick != self._tick or score not in self._restless:
            self._catch_up(score)
            self.refresh(score, self._now)
        return score.value

    def refresh(self, score: PeerScore, now: float) -> None:
        """Recompute ``score.value``."""
        p = self._params
        total, calm = 0.0, not score.behaviour and score.application >= 0
        for topic in score.topics.values():
            total += topic.value(now)
            calm = calm and topic.calm
        total = min(total, p.topic_cap) + p.application_weight * score.application
        if score.group is not None and p.colocation_weight:
            surplus = self._groups[score.group] - p.colocation_threshold
            if surplus > 0:
                total += p.colocation_weight * surplus * surplus
                calm = False
        excess = score.behaviour - p.behaviour_threshold
        if excess > 0:
            total += p.behaviour_weight * excess * excess
        score.value = total
        if calm:
            self._restless.pop(score, None)
        else:
            self._restless[score] = None

    def heartbeat(self, now: float) -> None:
        """Decay the counters and recompute the scores that may be negative, forget what is long over."""
        self._tick += 1
        self._now = now
        due: Collection[PeerScore] = self._peers.values() if self._tick % _SETTLE_ALL == 0 else self._restless
        if due:
            for score in list(due):
                self._catch_up(score)
                self.refresh(score, now)
        if self._retained:
            self._forget(now)

    def _forget(self, now: float) -> None:
        for peer, (left, score) in list(self._retained.items()):
            self._catch_up(score)
            if now - left > self._params.retain or not (score.topics or score.behaviour):
                del self._retained[peer]

    def _catch_up(self, score: PeerScore) -> None:
        """Apply the decay of the heartbeats since the last look."""
        missed = self._tick - score.tick
        if not missed:
            return
        score.tick = self._tick
        zero = self._params.decay_to_zero
        if score.behaviour:
            score.behaviour = _decayed(score.behaviour, self._params.behaviour_decay**missed, zero)
        empty = [name for name, topic in score.topics.items() if not topic.decay(missed, zero)]
        for name in empty:
            del score.topics[name]

    def _disturb(self, group: Hashable) -> None:
        """One more peer of a subnet: where that is too many, all of them pay for it."""
        if self._groups[group] > self._params.colocation_threshold:
            self._restless.update((score, None) for score in self._peers.values() if score.group == group)

    @staticmethod
    def _leave_mesh(topic: TopicScore, now: float) -> None:
        topic.mesh_failure += topic.deficit(now) ** 2
        topic.grafted = None
