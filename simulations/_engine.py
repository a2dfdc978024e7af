"""The event heap: virtual time, deterministic order, and the trace hash that proves it.

Time is counted in integer microseconds. Events of one instant run in the order in which they were scheduled, so a
run depends on nothing but its seed. The trace hash is the SHA-256 over (time, destination, kind, payload digest) of
every delivered message, on any machine the same.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections.abc import Callable
from random import Random
from typing import Any, Final

__all__ = ["SECOND", "EventHeap", "Timer"]

SECOND: Final = 1_000_000  #: microseconds

_TRACE: Final = struct.Struct("<QIBI")
_BATCH: Final = 1 << 16


class Timer:
    """A scheduled call that can be cancelled; cancelled timers are skipped when their time comes."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.call: Callable[..., Any] | None = call
        self.args = args

    def cancel(self) -> None:
        self.call = None


class EventHeap:
    """Runs callbacks in order of time.

    Attributes:
        now: microseconds since the start.
        events: messages delivered plus timers that changed state (their callback did not return False).
        random: the one source of randomness of a run; derive others from it by name with :meth:`stream`.
    """

    __slots__ = ("_digest", "_heap", "_order", "_pending", "_seed", "events", "messages", "now", "random")

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.events = 0
        self.messages = 0
        self.random = Random(seed)  # noqa: S311 - a simulation must repeat
        self._seed = seed
        self._heap: list[tuple[int, int, Any, tuple[Any, ...]]] = []  # a callable, or a Timer
        self._order = 0
        self._digest = hashlib.sha256()
        self._pending = bytearray()

    def stream(self, name: str) -> Random:
        """An independent random source, the same for the same seed and name."""
        return Random(int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:8], "big"))  # noqa: S311

    @property
    def seconds(self) -> float:
        return self.now / SECOND

    def at(self, when: int, call: Callable[..., Any], *args: Any) -> None:
        """Run ``call(*args)`` at ``when`` microseconds, or now if that has passed."""
        self._order += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._order, call, args))

    def timer(self, when: int, call: Callable[..., Any], *args: Any) -> Timer:
        """Like :meth:`at`, cancellable."""
        timer = Timer(call, args)
        self._order += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._order, timer, ()))
        return timer

    def trace(self, destination: int, kind: int, payload: int) -> None:
        """Note a delivered message: node number, kind of message (0 to 255), 32-bit digest of its content."""
        self.messages += 1
        self.events += 1
        pending = self._pending
        pending += _TRACE.pack(self.now, destination, kind, payload & 0xFFFFFFFF)
        if len(pending) > _BATCH:
            self._digest.update(pending)
            pending.clear()

    @property
    def trace_hash(self) -> str:
        """Of everything delivered so far, hex."""
        digest = self._digest.copy()
        digest.update(self._pending)
        return digest.hexdigest()

    def run(self, until: int, progress: Callable[[float], None] | None = None) -> None:
        """Run events up to and including ``until`` microseconds, then stand at ``until``.

        ``progress`` is told the share done, about two hundred times.
        """
        heap = self._heap
        pop = heapq.heappop
        step = max(1, (until - self.now) // 200)
        next_report = self.now + step
        start = self.now
        while heap and heap[0][0] <= until:
            when, _, call, args = pop(heap)
            self.now = when
            if progress is not None and when >= next_report:
                next_report = when + step
                progress((when - start) / max(1, until - start))
            if call.__class__ is Timer:
                timer: Timer = call
                if timer.call is None:
                    continue
                call, args = timer.call, timer.args
                timer.call = None
                if call(*args) is not False:
                    self.events += 1
            else:
                call(*args)
        self.now = until
        if progress is not None:
            progress(1.0)
