"""The worker role: an engine, and the service that runs other peers' tasks in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.config import Constitution, Settings
from owm.identity import Identity
from owm.model import Engine
from owm.net import Network
from owm.roles._manifest import Load, ManifestSource
from owm.store import Store
from owm.tasks import TaskWorker, WorkerLimits

__all__ = ["WorkerRole"]

_log = structlog.get_logger(__name__)

_QUEUE_PER_SLOT: Final = 2


class WorkerRole:
    """Runs tasks for others.

    Args:
        engine: not running yet; the role owns it.
    """

    name = "worker"

    def __init__(
        self,
        engine: Engine,
        network: Network,
        identity: Identity,
        store: Store,
        constitution: Constitution,
        settings: Settings,
        clock: Clock,
    ) -> None:
        slots = min(settings.model.slots, settings.network.max_concurrent_tasks)
        self._stop_timeout = settings.node.stop_timeout or settings.model.task_timeout
        self._stopped_at = math.inf
        self._engine = engine
        self.tasks = TaskWorker(
            network,
            engine,
            identity,
            store,
            constitution.id,
            clock,
            WorkerLimits(slots=slots, queue=slots * _QUEUE_PER_SLOT, task_timeout=settings.model.task_timeout),
        )

    @asynccontextmanager
    async def running(self, manifest: ManifestSource, on_change: Callable[[], None]) -> AsyncIterator[Self]:
        """Start the engine, then take tasks; at the end those that run are completed first (SRS-NODE-09).

        Cancelling it cuts them.

        Args:
            manifest: gets the engine and its load; it offers no slots while the engine is away.
            on_change: called when the engine went away or came back.
        """
        async with self._engine.running(), self.tasks.running(), trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, on_change)
            manifest.engine = self._engine
            manifest.task_types = self.tasks.task_types
            manifest.load = self._load
            try:
                yield self
            finally:
                self.stop()
                left = self._stopped_at + self._stop_timeout - trio.current_time()
                if not await self.tasks.drain(max(0.0, left)):
                    _log.warning("tasks were cut off", seconds=self._stop_timeout)
                nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Refuse new tasks from now on; their time to end counts from the first call."""
        self.tasks.refuse()
        self._stopped_at = min(self._stopped_at, trio.current_time())

    def _load(self) -> Load:
        statistics = self.tasks.statistics()
        slots = statistics.slots if self._engine.statistics().ready else 0
        return Load(slots, statistics.busy, statistics.queued)

    async def _tell(self, on_change: Callable[[], None]) -> None:
        while True:
            await self._engine.readiness_changed()
            on_change()
