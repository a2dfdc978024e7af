"""What callers have used of their day: counted in memory, written down behind it, so that a restart forgets nothing.

Every request counted is one row (who, when) in the file of the API keys, kept for 24 hours. Rows are written by one
task, all that came meanwhile in one transaction, so a request never waits for the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog
import trio

from owm.api._access import Caller
from owm.api._window import SlidingWindow
from owm.api.errors import RateLimited
from owm.clock import Clock
from owm.errors import TemporaryError

__all__ = ["Charge", "Usage"]

_log = structlog.get_logger(__name__)

_DAY: Final = 86_400.0
_PURGE_EVERY: Final = 3600.0
_RETRY: Final = 1.0  #: seconds, after the file could not be written
_MAX_WAITING: Final = 100_000  #: changes that wait for the file; while it cannot be written, the oldest are given up
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS api_requests (caller TEXT NOT NULL, at REAL NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS api_requests_at ON api_requests (at)",
)


class Charge(msgspec.Struct, frozen=True):
    """One request that was counted."""

    caller: Caller
    at: float  #: Unix seconds


class _Change(msgspec.Struct, frozen=True):
    caller: str
    at: float
    counted: bool  #: False: given back


class Usage:
    """The windows of all callers. Use as ``async with usage.running():``.

    Args:
        path: the SQLite file.
        clock: its wall time is read once; from there on the monotonic clock counts, which nobody can set back.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._epoch = clock.time() - clock.monotonic()
        # Apart, so that a crowd of addresses cannot make the gateway forget what a key has used.
        self._windows = {False: SlidingWindow(_DAY), True: SlidingWindow(_DAY)}
        self._waiting: list[_Change] = []
        self._wake = trio.Event()
        self._purged = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Remember the last day, then write behind until the block ends; what waits then is written first.

        Raises:
            TemporaryError: the file cannot be opened or read.
        """
        try:
            database = await trio.to_thread.run_sync(self._open)
            for caller, at in await trio.to_thread.run_sync(partial(_load, database, self._now() - _DAY)):
                self._windows[caller.startswith("page:")].restore(caller, min(at, self._now()))
        except sqlite3.Error as error:
            raise TemporaryError(f"what was used of the API's limits cannot be read: {error}") from error
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_behind, database)
                try:
                    yield self
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._write(database)
                await trio.to_thread.run_sync(database.close)

    def remaining(self, caller: Caller) -> int | None:
        """How many more requests this caller has in its day; None for any number."""
        return self._windows[caller.anonymous].remaining(caller.id, caller.per_day, self._now())

    def charge(self, caller: Caller) -> Charge:
        """Count one request. Raises RateLimited."""
        now = self._now()
        wait = self._windows[caller.anonymous].take(caller.id, caller.per_day, now)
        if wait is not None:
            raise RateLimited(
                f"the limit of {caller.per_day} requests in 24 hours is used up; the next is free in {wait} s",
                retry_after=wait,
            )
        if caller.per_day > 0:
            self._note(_Change(caller.id, now, True))
        return Charge(caller, now)

    def give_back(self, charge: Charge) -> None:
        """The request was counted and came to nothing through no fault of its caller: count it no longer."""
        if self._windows[charge.caller.anonymous].give_back(charge.caller.id, charge.at):
            self._note(_Change(charge.caller.id, charge.at, False))

    def _now(self) -> float:
        return self._epoch + self._clock.monotonic()

    def _note(self, change: _Change) -> None:
        self._waiting.append(change)
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[: _MAX_WAITING // 10]
        self._wake.set()

    async def _write_behind(self, database: sqlite3.Connection) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if not await self._write(database):
                await trio.sleep(_RETRY)
                self._wake.set()

    async def _write(self, database: sqlite3.Connection) -> bool:
        """Write what waits; False when the file could not be written. Not left half-way by a cancellation."""
        changes, self._waiting = self._waiting, []
        if not changes:
            return True
        now = self._now()
        purge = now - self._purged >= _PURGE_EVERY
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial(_store, database, changes, now - _DAY if purge else None))
        except sqlite3.Error as error:
            _log.warning("what was used of the API's limits could not be written", error=str(error))
            self._waiting[:0] = changes
            return False
        if purge:
            self._purged = now
        return True

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=2.0, check_same_thread=False, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last second; nothing worse
        for statement in _SCHEMA:
            database.execute(statement)
        return database


def _load(database: sqlite3.Connection, since: float) -> list[tuple[str, float]]:
    return database.execute("SELECT caller, at FROM api_requests WHERE at > ? ORDER BY at", (since,)).fetchall()


def _store(database: sqlite3.Connection, changes: Sequence[_Change], expired: float | None) -> None:
    """All changes in one transaction, in their order."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for change in changes:
            if change.counted:
                database.execute("INSERT INTO api_requests (caller, at) VALUES (?, ?)", (change.caller, change.at))
            else:
                database.execute(
                    "DELETE FROM api_requests WHERE rowid = "
                    "(SELECT rowid FROM api_requests WHERE at = ? AND caller = ? LIMIT 1)",
                    (change.at, change.caller),
                )
        if expired is not None:
            database.execute("DELETE FROM api_requests WHERE at <= ?", (expired,))
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
