"""What a restart must not wipe out: penalties, and how much of the day's bytes is used up."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.net import HALF_LIFE, ByteBudget, Penalties
from owm.store import Store
from owm.store.errors import StoreError

__all__ = ["BudgetMemory", "StandingMemory"]

_log = structlog.get_logger(__name__)

_SPACE: Final = "penalty"
_BYTES: Final = "bytes passed"
_SAVE_EVERY: Final = 30.0


class _Remembered(msgspec.Struct, frozen=True, array_like=True):
    score: float
    time: float  #: unix seconds of the score


_decode: Final = msgspec.msgpack.Decoder(_Remembered).decode


class StandingMemory:
    """Writes scores to the store every half minute and at the end, and takes them back in at the start."""

    def __init__(self, penalties: Penalties, store: Store, clock: Clock) -> None:
        self._penalties = penalties
        self._store = store
        self._clock = clock
        self._saved: dict[bytes, bytes] = {}

    async def load(self) -> None:
        """Take in what the last run left, with the recovery of the time since."""
        now = self._clock.time()
        scores = []
        for key, data in await self._store.items(_SPACE):
            try:
                kept, peer = _decode(data), key.decode()
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                _log.warning("a stored penalty cannot be read", error=str(error))
                continue
            away = max(0.0, now - kept.time)
            scores.append((peer, kept.score * 0.5 ** (away / HALF_LIFE)))
            self._saved[key] = data
        self._penalties.restore(scores, self._clock.monotonic())

    async def run(self) -> None:
        """Save until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(_SAVE_EVERY)
                await self.save()
        finally:
            with trio.CancelScope(shield=True):
                await self.save()

    async def save(self) -> None:
        """Write the scores down; a store that cannot be written costs only this memory."""
        now = self._clock.time()
        scores = self._penalties.export(self._clock.monotonic())
        if not scores and not self._saved:
            return
        kept = {peer.encode(): msgspec.msgpack.encode(_Remembered(score, now)) for peer, score in scores.items()}
        try:
            await self._store.replace(_SPACE, kept)
            self._saved = kept
        except StoreError as error:
            _log.warning("penalties could not be saved", error=str(error))


class _Passed(msgspec.Struct, frozen=True, array_like=True):
    time: float  #: unix seconds
    amount: int


_decode_passed: Final = msgspec.msgpack.Decoder(list[_Passed]).decode


class BudgetMemory:
    """Keeps the bytes of the last 24 hours in the store, so that a restart gives nobody a second day's worth."""

    def __init__(self, budget: ByteBudget, store: Store, clock: Clock) -> None:
        self._budget = budget
        self._store = store
        self._clock = clock

    async def load(self) -> None:
        """Take in what the last run counted."""
        now = self._clock.time()
        counted: list[tuple[float, int]] = []
        for _, data in await self._store.items(_BYTES):
            try:
                # A clock that was put back must not make the bytes come from the future and be forgotten.
                counted += [(max(0.0, now - kept.time), kept.amount) for kept in _decode_passed(data)]
            except msgspec.DecodeError as error:
                _log.warning("the stored count of bytes cannot be read", error=str(error))
        self._budget.restore(counted, self._clock.monotonic())

    async def run(self) -> None:
        """Save until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(_SAVE_EVERY)
                await self.save()
        finally:
            with trio.CancelScope(shield=True):
                await self.save()

    async def save(self) -> None:
        """Write the count down; a store that cannot be written costs only this memory."""
        now = self._clock.time()
        kept = [_Passed(now - age, amount) for age, amount in self._budget.export(self._clock.monotonic())]
        try:
            await self._store.replace(_BYTES, {b"": msgspec.msgpack.encode(kept)})
        except StoreError as error:
            _log.warning("the count of bytes could not be saved", error=str(error))
