"""Who gets which task, without clock or I/O: priorities, a bounded queue, power of two choices.

Two eligible workers are drawn at random and the better one is taken (Mitzenmacher 2001), so that requesters with the
same view do not all pick the same worker.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from owm.directory import Peer
from owm.identity import PeerId

__all__ = ["Patience", "SchedulerCore", "Want"]

_UNMEASURED = 0.0  # seconds: a worker that was never measured is worth a try
_SCAN = 64  # waiters looked at beyond one that cannot be placed


@dataclass(slots=True, eq=False)
class Want:
    """A task that waits for a worker."""

    task_type: str
    model: str
    min_tier: str
    priority: int
    exclude: frozenset[PeerId] = frozenset()
    context: int = 0  #: tokens that a worker's chat model should be able to hold
    placed: Peer | None = None
    hopeless: bool = False  #: nobody is left who could ever take it
    gone: bool = False  #: who wanted it left

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.task_type, self.model, self.min_tier)


@dataclass(slots=True)
class Patience:
    """How long to wait for a worker's next output before another is asked (adaptive deadlines against stragglers)."""

    first: float = 30.0  #: seconds at least for the first output
    least: float = 10.0  #: seconds at least between outputs
    factor: float = 20.0  #: times what is usual
    _gap: float | None = field(default=None)

    def next_deadline(self, latency: float | None) -> float:
        """Seconds to wait now; ``latency`` is the worker's usual time to first output."""
        if self._gap is None:
            return max(self.first, self.factor * (latency or 0.0))
        return max(self.least, self.factor * self._gap)

    def note(self, gap: float) -> None:
        """An output came after ``gap`` seconds."""
        self._gap = gap if self._gap is None else self._gap + 0.2 * (gap - self._gap)


class SchedulerCore:
    """The queue and the choice.

    Args:
        eligible: (task type, model, tier, paused) -> workers, as :meth:`owm.directory.Directory.eligible`.
        weight: a worker's reliability, 0 to 1.
        max_queued: tasks that may wait.
        most_per_worker: tasks of ours that one worker may have, whatever it says it can do.
    """

    def __init__(
        self,
        eligible: Callable[[str, str, str, bool], Sequence[Peer]],
        weight: Callable[[PeerId], float],
        random: Random,
        max_queued: int = 2000,
        most_per_worker: int = 1000,
    ) -> None:
        self._eligible = eligible
        self._weight = weight
        self._random = random
        self._max_queued = max_queued
        self._most_per_worker = most_per_worker
        self._heaps: dict[tuple[str, str, str], list[tuple[int, int, Want]]] = {}
        self._order = itertools.count()
        self._busy_until: dict[PeerId, float] = {}
        self.in_flight: Counter[PeerId] = Counter()
        self.queued = 0

    def submit(self, want: Want) -> bool:
        """Queue a task; False when the queue is full."""
        if self.queued >= self._max_queued:
            return False
        heapq.heappush(self._heaps.setdefault(want.key, []), (want.priority, next(self._order), want))
        self.queued += 1
        return True

    def withdraw(self, want: Want) -> None:
        """Who wanted it left. Gives a worker back that was just chosen."""
        if want.placed is not None:
            self.release(want.placed.id)
        elif not want.gone and not want.hopeless:
            want.gone = True
            self.queued -= 1

    def release(self, worker: PeerId) -> None:
        """A worker is done with one task of ours."""
        self.in_flight[worker] -= 1
        if self.in_flight[worker] <= 0:
            del self.in_flight[worker]

    def refused(self, worker: PeerId, now: float) -> None:
        """A worker is full with others' tasks: leave it alone for a moment."""
        self._busy_until[worker] = now + self._random.uniform(0.1, 0.3)

    def pump(self, now: float) -> list[Want]:
        """Place what can be placed; returns those that were placed or became hopeless."""
        for worker in [worker for worker, until in self._busy_until.items() if until <= now]:
            del self._busy_until[worker]
        settled: list[Want] = []
        for key in sorted(self._heaps, key=lambda key: self._heaps[key][0][:2]):
            settled += self._pump_one(self._heaps[key])
            if not self._heaps[key]:
                del self._heaps[key]
        self.queued -= len(settled)
        return settled

    def _pump_one(self, heap: list[tuple[int, int, Want]]) -> list[Want]:
        settled: list[Want] = []
        aside: list[tuple[int, int, Want]] = []
        while heap and len(aside) < _SCAN:
            item = heapq.heappop(heap)
            want = item[2]
            if want.gone:
                continue
            full = self._place(want)
            if want.placed is not None or want.hopeless:
                settled.append(want)
                continue
            aside.append(item)
            if full and not want.exclude:
                break  # those behind it that exclude nobody want the same workers, all full
        for item in aside:
            heapq.heappush(heap, item)
        return settled

    def _place(self, want: Want) -> bool:
        """Choose a worker if one is free; True when none of those that may do it is."""
        usable = [peer for peer in self._eligible(*want.key, False) if peer.id not in want.exclude]
        if not usable:  # better a worker that failed lately than none
            usable = [peer for peer in self._eligible(*want.key, True) if peer.id not in want.exclude]
            if not usable:
                want.hopeless = True
                return False
        free = [peer for peer in usable if self._has_room(peer)]
        if not free:
            return True
        if want.context:
            free = _large_enough(free, usable, want)
            if not free:
                return False
        drawn = self._random.sample(free, 2) if len(free) > 2 else free
        want.placed = min(drawn, key=self._cost)
        self.in_flight[want.placed.id] += 1
        return False

    def _has_room(self, peer: Peer) -> bool:
        # A little more than the slots, so that a slot that frees itself has its next task waiting there.
        room = min(self._most_per_worker, peer.manifest.slots + max(1, peer.manifest.slots // 2))
        return peer.id not in self._busy_until and self.in_flight[peer.id] < room

    def _cost(self, peer: Peer) -> tuple[float, int]:
        known = max(self.in_flight[peer.id], peer.manifest.busy + peer.manifest.queued)
        load = (known + 1) / max(1, peer.manifest.slots)
        latency = _UNMEASURED if peer.latency is None else peer.latency
        return (max(load, 0.5) * (0.05 + latency) / max(self._weight(peer.id), 0.05), peer.manifest.base_rate_msat)


def _large_enough(free: list[Peer], usable: list[Peer], want: Want) -> list[Peer]:
    """Those of ``free`` whose context is large enough or, where no usable worker's is, the largest."""
    large = [peer for peer in free if _context(peer, want.model) >= want.context]
    if large:
        return large
    most = max(_context(peer, want.model) for peer in usable)
    return [] if most >= want.context else [peer for peer in free if _context(peer, want.model) == most]


def _context(peer: Peer, model: str) -> int:
    """Tokens of the chat model that would answer; the largest, where the task names none."""
    found = (served.context for served in peer.manifest.models if served.kind == "chat" and model in ("", served.id))
    return max(found, default=0)
