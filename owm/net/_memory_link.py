"""How bytes travel between two peers of a :class:`MemoryNetwork`: latency, jitter, bandwidth, loss, partitions."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from random import Random
from typing import Final

import trio

__all__ = ["Link", "Nat", "Timeline", "Wire"]

Deliver = Callable[[], None]

_RETRANSMIT: Final = 0.2  # seconds, TCP's usual least retransmission timeout
_MAX_RETRANSMITS: Final = 8


class Nat(Enum):
    """Who can dial a peer."""

    PUBLIC = "public"  #: everybody
    CONE = "cone"  #: those whom it has dialled within the last minute
    SYMMETRIC = "symmetric"  #: nobody


@dataclass(frozen=True, slots=True)
class Link:
    """The path between two peers, the same in both directions. Nothing is ever missing or out of order, as with TCP.

    Raises:
        ValueError: a negative number, or a probability of more than 1.
    """

    latency: float = 0.0  #: seconds one way
    jitter: float = 0.0  #: up to this many seconds more, uniform
    bandwidth: float | None = None  #: bytes per second each way; None for no limit
    loss: float = 0.0  #: probability that a frame is sent again, which delays it and all behind it
    reset: float = 0.0  #: probability per frame that the connection breaks

    def __post_init__(self) -> None:
        if min(self.latency, self.jitter) < 0 or not (0 <= self.loss <= 1 and 0 <= self.reset <= 1):
            raise ValueError("delays are not negative and probabilities lie between 0 and 1")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError("a bandwidth is positive")


class Timeline:
    """What happens to one peer and when; a single task runs it, in order of time and, at one time, of scheduling."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Deliver]] = []
        self._order = itertools.count()
        self._sleep = trio.CancelScope()
        self._until = float("-inf")  # when the task wakes
        self.running = False

    def at(self, when: float, action: Deliver) -> None:
        """Run ``action`` at trio's time ``when``; dropped when the peer does not run."""
        if self.running:
            heapq.heappush(self._due, (when, next(self._order), action))
            if when < self._until:
                self._sleep.deadline = self._until = when

    async def run(self) -> None:
        """Until cancelled; what has not happened by then never does."""
        self.running = True
        try:
            while True:
                now = trio.current_time()
                self._until = float("-inf")
                while self._due and self._due[0][0] <= now:
                    heapq.heappop(self._due)[2]()
                self._until = self._due[0][0] if self._due else float("inf")
                with trio.CancelScope(deadline=self._until) as self._sleep:
                    await trio.sleep_forever()
        finally:
            self.running = False
            self._due.clear()


class Wire:
    """One direction of one connection.

    Args:
        link: looked up for every frame, so that a test may change it under way.
        random: of this wire alone, so that other traffic does not change what happens here.
        source, target: the timelines of the two peers.
        blocked: whether a partition holds up this direction; what is sent meanwhile waits.
        broken: called when the link loses the connection.
    """

    def __init__(
        self,
        link: Callable[[], Link],
        random: Random,
        source: Timeline,
        target: Timeline,
        blocked: Callable[[], bool],
        broken: Callable[[str], None],
    ) -> None:
        self._link = link
        self._random = random
        self._source = source
        self._target = target
        self._blocked = blocked
        self._broken = broken
        self._urgent: deque[tuple[int, Deliver]] = deque()
        self._bulk: deque[tuple[int, Deliver]] = deque()
        self._busy = False
        self._arrival = 0.0

    def send(self, size: int, bulk: bool, deliver: Deliver) -> None:
        """Queue a frame of ``size`` bytes; bulk frames let the others pass while the link is busy."""
        (self._bulk if bulk else self._urgent).append((size, deliver))
        self.resume()

    def send_last(self, deliver: Deliver) -> None:
        """Send past all that is queued, which is dropped: the connection ends here."""
        self._urgent.clear()
        self._bulk.clear()
        if not self._blocked():
            self._launch(deliver)

    def later(self, seconds: float, action: Deliver) -> None:
        """Run ``action`` at the source after a while, as long as it runs."""
        self._source.at(trio.current_time() + seconds, action)

    def resume(self) -> None:
        """Go on after a partition has healed, or after a frame was put on the link."""
        while not self._busy and (self._urgent or self._bulk) and not self._blocked():
            size, deliver = (self._urgent or self._bulk).popleft()
            bandwidth = self._link().bandwidth
            if bandwidth is None:
                self._launch(deliver)
            else:
                self._busy = True
                self._source.at(trio.current_time() + size / bandwidth, partial(self._sent, deliver))

    def _sent(self, deliver: Deliver) -> None:
        self._busy = False
        self._launch(deliver)
        self.resume()

    def _launch(self, deliver: Deliver) -> None:
        link = self._link()
        delay = link.latency + (self._random.uniform(0, link.jitter) if link.jitter else 0.0)
        retransmits = 0
        while link.loss and self._random.random() < link.loss:
            delay += max(_RETRANSMIT, 2 * link.latency) * 2**retransmits
            retransmits += 1
            if retransmits > _MAX_RETRANSMITS:
                self._broken("the link lost too much")
                return
        if link.reset and self._random.random() < link.reset:
            self._broken("the link was reset")
            return
        self._arrival = max(self._arrival, trio.current_time() + delay)
        self._target.at(self._arrival, deliver)
