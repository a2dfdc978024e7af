"""What a peer remembers: its task log, its records' sequence numbers, its dispatch log and small state."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.store._database import Database, InlineDatabase, ThreadDatabase
from owm.store._entries import COLUMNS, Content, TaskEntry
from owm.store._retention import ContentRoom, Retention, removals
from owm.store.errors import StoreError

__all__ = ["Store"]

_log = structlog.get_logger(__name__)

_PRUNE_AFTER: Final = 60.0
_PRUNE_EVERY: Final = 3600.0

_RESERVE: Final = 1000  # sequence numbers persisted ahead, so that not every record waits for the disk

_UPSERT: Final = (
    f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608 - constants
    f"ON CONFLICT (id, role) DO UPDATE SET {', '.join(f'{name}=excluded.{name}' for name in COLUMNS[2:])}"
)
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM tasks"  # noqa: S608 - constants


class Store:
    """Durable state in one SQLite file. Use as ``async with Store(path).running() as store:``.

    Every write has reached the disk when its call returns, and is whole or absent after a crash at any moment.

    Args:
        path: the database file, or None for one in memory.
        inline: run in the calling thread instead of a thread of its own; for tests and the simulator.
        retention: what is kept, and for how long; see :meth:`prune`.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        inline: bool = False,
        retention: Retention = Retention(),  # noqa: B008 - frozen
    ) -> None:
        self.retention = retention
        self._room = ContentRoom(retention.content_bytes)
        self._path = path
        self._inline = inline or path is None
        self._database: Database | None = None
        self._next: dict[str, int] = {}
        self._ceiling: dict[str, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Open, creating or upgrading the file; raises StoreError, SchemaTooNew."""
        if self._inline:
            database = InlineDatabase(self._path or ":memory:")
            self._database = database
            try:
                yield self
            finally:
                database.close()
            return
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with ThreadDatabase(self._path).running() as threaded:
            self._database = threaded
            yield self

    @property
    def _db(self) -> Database:
        if self._database is None:
            raise RuntimeError("enter running() first")
        return self._database

    async def log_task(self, entry: TaskEntry, *contents: Content) -> None:
        """Add a task, or replace what is known of it; ``contents`` are kept with it where the settings say so."""
        await self._db.run(lambda db: self._log(db, entry, contents))

    def _log(self, db: sqlite3.Connection, entry: TaskEntry, contents: tuple[Content, ...]) -> None:
        db.execute(_UPSERT, msgspec.structs.astuple(entry))
        if self.retention.contents:
            for content in contents:
                time = entry.finished or entry.started or entry.created
                self._room.keep(db, content, time)

    async def content(self, sha256: bytes) -> Content | None:
        """The input or output of that hash, if it is kept."""
        rows = await self._query("SELECT hash, data, text FROM contents WHERE hash = ?", (sha256,))
        return Content(*rows[0]) if rows else None

    async def prune(self, now: float) -> int:
        """Forget what the retention no longer asks for; returns how many rows. Call it now and then.

        Args:
            now: unix seconds.
        """
        removed = 0
        for job in removals(self.retention, now):
            while count := await self._db.run(job):
                removed += count
        return removed

    async def keep_pruned(self, clock: Clock) -> None:
        """Prune a minute after the start and then hourly; runs until cancelled."""
        await trio.sleep(_PRUNE_AFTER)
        while True:
            try:
                removed = await self.prune(clock.time())
            except StoreError as error:
                _log.warning("old tasks could not be removed", error=str(error))
            else:
                if removed:
                    _log.info("old tasks were removed", rows=removed)
            await trio.sleep(_PRUNE_EVERY)

    async def task(self, task_id: str, role: str) -> TaskEntry | None:
        rows = await self._query(f"{_SELECT} WHERE id = ? AND role = ?", (task_id, role))
        return TaskEntry(**dict(zip(COLUMNS, rows[0], strict=True))) if rows else None

    async def tasks(self, limit: int = 100, state: str | None = None) -> list[TaskEntry]:
        """The newest tasks first, of one state where given."""
        where, values = (" WHERE state = ?", (state,)) if state else ("", ())
        rows = await self._query(f"{_SELECT}{where} ORDER BY created DESC, id LIMIT ?", (*values, limit))
        return [TaskEntry(**dict(zip(COLUMNS, row, strict=True))) for row in rows]

    async def abandon_unfinished(self, now: float) -> int:
        """Mark what an earlier process left unfinished as interrupted; returns how many. Call once at start."""
        sql = "UPDATE tasks SET state = 'failed', error = 'interrupted', finished = ? WHERE finished IS NULL"
        return await self._db.run(lambda db: db.execute(sql, (now,)).rowcount)

    async def next_sequence(self, record_type: str, now: float) -> int:
        """``max(last + 1, unix milliseconds)``, never given out twice, not even after a crash.

        Args:
            now: unix seconds.
        """
        if record_type not in self._ceiling:
            rows = await self._query("SELECT ceiling FROM sequences WHERE type = ?", (record_type,))
            if record_type not in self._ceiling:  # nobody else asked meanwhile
                self._ceiling[record_type] = rows[0][0] if rows else 0
                self._next[record_type] = self._ceiling[record_type] + 1
        number = max(self._next[record_type], int(now * 1000))
        self._next[record_type] = number + 1
        if number > self._ceiling[record_type]:
            # Others wait for their own commit: the ceiling counts only once it is on the disk.
            ceiling = number + _RESERVE
            sql = (
                "INSERT INTO sequences VALUES (?, ?) "
                "ON CONFLICT (type) DO UPDATE SET ceiling = max(ceiling, excluded.ceiling)"
            )
            await self._db.run(lambda db: db.execute(sql, (record_type, ceiling)))
            self._ceiling[record_type] = max(self._ceiling[record_type], ceiling)
        return number

    async def get(self, space: str, key: bytes) -> bytes | None:
        rows = await self._query("SELECT value FROM state WHERE space = ? AND key = ?", (space, key))
        return rows[0][0] if rows else None

    async def put(self, space: str, key: bytes, value: bytes | None) -> None:
        """Set a value, or remove it with None."""

        def job(db: sqlite3.Connection) -> None:
            if value is None:
                db.execute("DELETE FROM state WHERE space = ? AND key = ?", (space, key))
            else:
                db.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (space, key, value))

        await self._db.run(job)

    async def items(self, space: str) -> list[tuple[bytes, bytes]]:
        """Everything in a space, by key."""
        return await self._query("SELECT key, value FROM state WHERE space = ? ORDER BY key", (space,))

    async def replace(self, space: str, items: dict[bytes, bytes]) -> None:
        """Make ``items`` the whole content of a space, at once."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM state WHERE space = ?", (space,))
            db.executemany("INSERT INTO state VALUES (?, ?, ?)", [(space, *item) for item in items.items()])

        await self._db.run(job)

    async def append_dispatch(
        self, position: int | None, leaf: bytes, now: float = 0.0, entry: TaskEntry | None = None, *contents: Content
    ) -> int:
        """Append to the dispatch log, and log the task in the same transaction; returns the position.

        Args:
            position: None for the next one. Raises StoreError when it is taken.
            now: unix seconds.
        """

        def job(db: sqlite3.Connection) -> int:
            at = position
            if at is None:
                (last,) = db.execute("SELECT max(position) FROM dispatches").fetchone()
                at = 0 if last is None else last + 1
            db.execute("INSERT INTO dispatches VALUES (?, ?, ?)", (at, leaf, now))
            if entry is not None:
                self._log(db, entry, contents)
            return at

        return await self._db.run(job)

    async def dispatches(self, start: int = 0, end: int = 2**62) -> list[bytes]:
        """Leaves of the dispatch log from ``start`` to before ``end``, in order; old ones may be gone."""
        sql = "SELECT leaf FROM dispatches WHERE position >= ? AND position < ? ORDER BY position"
        return [row[0] for row in await self._query(sql, (start, end))]

    async def dispatch_nodes(self, level: int, start: int, end: int) -> list[tuple[int, bytes]]:
        """Position and hash of complete subtrees of 2**level entries, from ``start`` to before ``end``."""
        sql = (
            "SELECT position, hash FROM dispatch_nodes WHERE level = ? AND position >= ? AND position < ? "
            "ORDER BY position"
        )
        return await self._query(sql, (level, start, end))

    async def add_dispatch_nodes(self, nodes: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep hashes of subtrees: level, position, hash. They follow from the leaves, and outlive them."""
        sql = "INSERT OR REPLACE INTO dispatch_nodes VALUES (?, ?, ?)"
        await self._db.run(lambda db: db.executemany(sql, nodes))

    async def _query(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        return await self._db.run(lambda db: db.execute(sql, values).fetchall())
