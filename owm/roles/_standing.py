"""Penalties kept over restarts: a peer that was banned yesterday is not welcome because we were updated."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.net import HALF_LIFE, Penalties
from owm.store import Store
from owm.store.errors import StoreError

__all__ = ["StandingMemory"]

_log = structlog.get_logger(__name__)

_SPACE: Final = "penalty"
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
