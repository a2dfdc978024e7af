"""The event heap: virtual time, deterministic order, and the trace hash that proves it.

Time is counted in integer microseconds. Events of one instant run in the order in which they were scheduled, so a
run depends on nothing but its seed. The trace hash is the SHA-256 over (time, destination, kind, payload digest) of
every delivered message, on any machine the same.

The heap is of slots of a few milliseconds. What falls into one is kept in the order of scheduling, and sorted once,
when its time comes: a heap of all events would compare each of them twenty times with others all over the memory.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from bisect import insort_left
from collections.abc import Callable
from operator import itemgetter
from random import Random
from typing import Any, Final

__all__ = ["SECOND", "EventHeap", "Timer"]

SECOND: Final = 1_000_000  #: microseconds

_TRACE: Final = struct.Struct("<QIBI")
_BATCH: Final = 1 << 16
_SLOT_BITS: Final = 13  # a slot is 8 ms: less than most delays, so that little is scheduled into the slot that runs

_Event = tuple[int, Any, tuple[Any, ...]]  # when; a callable, or a Timer; its arguments
_when: Final = itemgetter(0)


def _urgency(event: _Event) -> int:
    return -event[0]


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

    __slots__ = (
        "_current",
        "_digest",
        "_pending",
        "_seed",
        "_slot",
        "_slots",
        "_waiting",
        "events",
        "messages",
        "now",
        "random",
    )

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.events = 0
        self.messages = 0
        self.random = Random(seed)  # noqa: S311 - a simulation must repeat
        self._seed = seed
        self._slot = -1  # the one that runs
        self._current: list[_Event] = []  # what is left of it, the next last
        self._slots: list[int] = []  # a heap of those to come
        self._waiting: dict[int, list[_Event]] = {}  # what is in them, in the order of scheduling
        self._digest = hashlib.sha256()
        self._pending = bytearray()

    def stream(self, name: str) -> Random:
        """An independent random source, the same for the same seed and name."""
        return Random(int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:8], "big"))  # noqa: S311

    @property
    def seconds(self) -> float:
        return self.now / SECOND

    def at(self, when: int, call: Callable[..., Any] | Timer, *args: Any) -> None:
        """Run ``call(*args)`` at ``when`` microseconds, or now if that has passed."""
        when = when if when > self.now else self.now
        slot = when >> _SLOT_BITS
        if slot <= self._slot:
            insort_left(self._current, (when, call, args), key=_urgency)
            return
        waiting = self._waiting.get(slot)
        if waiting is None:
            self._waiting[slot] = [(when, call, args)]
            heapq.heappush(self._slots, slot)
        else:
            waiting.append((when, call, args))

    def timer(self, when: int, call: Callable[..., Any], *args: Any) -> Timer:
        """Like :meth:`at`, cancellable."""
        timer = Timer(call, args)
        self.at(when, timer)
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
        step = max(1, (until - self.now) // 200)
        next_report = self.now + step if progress is not None else until + 1
        start = self.now
        while self._next_slot(until):
            current = self._current
            while current and current[-1][0] <= until:
                when, call, args = current.pop()
                self.now = when
                if when >= next_report and progress is not None:
                    next_report = when + step
                    progress((when - start) / max(1, until - start))
                if type(call) is not Timer:
                    call(*args)
                    continue
                timer: Timer = call
                if timer.call is None:
                    continue
                call, args = timer.call, timer.args
                timer.call = None
                if call(*args) is not False:
                    self.events += 1
            if current:
                break
        self.now = until
        if progress is not None:
            progress(1.0)

    def _next_slot(self, until: int) -> bool:
        """Have something in the current slot; False when there is nothing up to ``until``."""
        if not self._current:
            if not self._slots or self._slots[0] << _SLOT_BITS > until:
                return False
            self._slot = heapq.heappop(self._slots)
            events = self._waiting.pop(self._slot)
            events.sort(key=_when)  # which leaves those of one instant in the order of scheduling
            events.reverse()
            self._current = events
        return True
