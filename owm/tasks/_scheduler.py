"""The scheduler as a running requester uses it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Final

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.directory import Directory, Peer
from owm.identity import PeerId
from owm.store import Store
from owm.tasks._core_reliability import Reliability
from owm.tasks._core_scheduler import SchedulerCore, Want
from owm.tasks._types import TASK_TYPES
from owm.tasks.errors import NoWorkers, TooManyTasks

__all__ = ["Scheduler", "required_tier"]

_log = structlog.get_logger(__name__)

_TICK: Final = 0.1
_PRESENCE_SECONDS: Final = 60.0
_SPACE: Final = "reliability"


def required_tier(task_type: str, network_min_tier: str) -> str:
    """The lowest tier for a task (SRS 4.3.1); networks whose own minimum is ``t0`` do not require tiers."""
    return "t0" if network_min_tier == "t0" else max(network_min_tier, TASK_TYPES[task_type].min_tier)


class Scheduler:
    """Chooses workers for tasks, with a bounded queue and priorities (SRS-SCHED-01 to 04).

    Args:
        min_tier: the network's own minimum.
        max_queued: tasks that may wait for a worker.
        most_per_worker: tasks of ours at one worker; below the streams that we may open with a peer.
    """

    def __init__(
        self,
        directory: Directory,
        store: Store,
        clock: Clock,
        random: Random,
        *,
        min_tier: str = "t0",
        max_queued: int = 2000,
        most_per_worker: int = 1000,
    ) -> None:
        self._directory = directory
        self._store = store
        self._clock = clock
        self._min_tier = min_tier
        self.reliability = Reliability()
        self._core = SchedulerCore(
            lambda task_type, model, tier, paused: directory.eligible(task_type, model, tier, paused=paused),
            lambda peer: self.reliability.weight(peer, clock.time()),
            random,
            max_queued,
            most_per_worker,
        )
        self._waiting: dict[int, trio.Event] = {}
        self._wake = trio.Event()
        directory.on_change(self._pump)

    @property
    def queued(self) -> int:
        """Tasks that wait for a worker."""
        return self._core.queued

    @property
    def in_flight(self) -> int:
        """Tasks that a worker has."""
        return self._core.in_flight.total()

    async def run(self) -> None:
        """Retry what waits, and keep the reliability figures; runs until cancelled."""
        for peer, data in await self._store.items(_SPACE):
            try:
                self.reliability.load(PeerId(peer), data)
            except (msgspec.DecodeError, ValueError) as error:
                _log.warning("a stored reliability figure cannot be read", error=str(error))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._observe)

    async def _tick(self) -> None:
        while True:
            if not self._core.queued:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep(_TICK)
            self._pump()

    async def _observe(self) -> None:
        while True:
            await trio.sleep(_PRESENCE_SECONDS)
            now = self._clock.time()
            present = {peer.id for peer in self._directory.peers() if peer.manifest.task_types}
            for peer in present.union(self.reliability.known()):
                self.reliability.presence(peer, peer in present, now)
            self._directory.expire()
            dumps = {bytes(peer): self.reliability.dump(peer) for peer in self.reliability.known()}
            await self._store.replace(_SPACE, dumps)

    @asynccontextmanager
    async def lease(
        self, task_type: str, model: str = "", exclude: frozenset[PeerId] = frozenset(), context: int = 0
    ) -> AsyncIterator[Peer]:
        """Wait for a worker and hold one of its places for the length of the block.

        Args:
            context: tokens that the worker's context should have; where none has so many, the largest are asked.

        Raises:
            NoWorkers: nobody is left who could do it.
            TooManyTasks: the queue is full.
        """
        tier = required_tier(task_type, self._min_tier)
        want = Want(task_type, model, tier, TASK_TYPES[task_type].priority, exclude, context)
        if not self._core.submit(want):
            raise TooManyTasks("too many tasks are waiting; try again in a moment")
        event = self._waiting[id(want)] = trio.Event()
        try:
            self._pump()
            self._wake.set()
            await event.wait()
            if want.placed is None:
                what = f"{task_type} with the model {model!r}" if model else task_type
                left = " is left" if exclude else ""
                raise NoWorkers(f"no worker for {what}{left}; try again later")
            yield want.placed
        finally:
            self._waiting.pop(id(want), None)
            self._core.withdraw(want)
            self._pump()

    def busy(self, worker: PeerId) -> None:
        """The worker said that it is full."""
        self._core.refused(worker, self._clock.monotonic())

    def outcome(self, worker: PeerId, success: bool, latency: float | None = None) -> None:
        """A task ended at this worker: well, with its first output after ``latency`` seconds, or by its fault."""
        self.reliability.outcome(worker, success, self._clock.time())
        if success:
            self._directory.succeeded(worker, latency if latency is None or math.isfinite(latency) else None)
        else:
            self._directory.failed(worker)

    def _pump(self) -> None:
        if not self._core.queued:
            return
        for want in self._core.pump(self._clock.monotonic()):
            if (event := self._waiting.get(id(want))) is not None:
                event.set()
