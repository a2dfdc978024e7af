"""Times operations and counts what they cost, less what the network costs at rest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

__all__ = ["Figures", "Meter"]

Figures = dict[str, dict[str, float]]
_IDLE_SECONDS = 3.0


class Meter:
    """Times operations and counts their CPU, less the idle CPU of the network.

    Args:
        cpu: seconds of CPU that the network has used; this process's unless said otherwise.
    """

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self.idle = 0.0
        self.figures: Figures = {}

    async def rest(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        await sleep(1.0)
        cpu = self._cpu()
        await sleep(_IDLE_SECONDS)
        self.idle = (self._cpu() - cpu) / _IDLE_SECONDS

    async def measure(
        self, name: str, operations: list[Callable[[], Awaitable[bool]]], sent: Callable[[], int] | None = None
    ) -> None:
        latencies: list[float] = []
        succeeded = 0
        messages = sent() if sent else 0
        cpu, started = self._cpu(), time.perf_counter()
        for operation in operations:
            at = time.perf_counter()
            succeeded += await operation()
            latencies.append(time.perf_counter() - at)
        used = self._cpu() - cpu - self.idle * (time.perf_counter() - started)
        latencies.sort()
        self.figures[name] = {
            "success": succeeded / len(operations),
            "p50": statistics.median(latencies) * 1000,
            "p99": latencies[int(len(latencies) * 0.99)] * 1000,
            "cpu": used / len(operations) * 1000,
            "messages": ((sent() if sent else 0) - messages) / len(operations),
        }
