"""One SQLite connection, used from one thread, so that the trio thread never waits for the disk.

Jobs that arrive while a commit is on its way to the disk share the next one (group commit). A job's result is handed
over only after the commit that holds it: whoever has awaited a write may tell others about it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeVar

import trio

from owm.store._schema import prepare
from owm.store.errors import StoreClosed, StoreError

__all__ = ["Database", "InlineDatabase", "ThreadDatabase"]

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

_MAX_BATCH: Final = 256


class Database(Protocol):
    """Runs jobs, each atomic, in the order in which they were given."""

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T: ...


@dataclass(slots=True)
class _Pending:
    job: Callable[[sqlite3.Connection], Any]
    token: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: Exception | None = None


def _connect(path: str) -> sqlite3.Connection:
    try:
        # The thread that opens it is the only one that uses it, except for closing at the very end.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        prepare(connection)
    except sqlite3.Error as error:
        raise StoreError(f"cannot open the database {path}: {error}") from error
    return connection


class InlineDatabase:
    """Runs each job at once in the calling thread: for tests and the simulator, where no thread may run."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        self._connection = _connect(str(path))

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run and commit one job; raises StoreError."""
        await trio.lowlevel.checkpoint()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = job(self._connection)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"the database failed: {error}") from error
        return result

    def close(self) -> None:
        self._connection.close()


class ThreadDatabase:
    """Runs jobs in one thread of its own. Use as ``async with database.running():``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: SimpleQueue[_Pending | None] = SimpleQueue()
        self._open = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ThreadDatabase]:
        """Open the file; leaving finishes what was queued, then closes. Raises StoreError, SchemaTooNew."""
        connection = await trio.to_thread.run_sync(_connect, str(self._path))
        thread = threading.Thread(target=self._work, args=(connection,), name="owm-store", daemon=True)
        thread.start()
        self._open = True
        try:
            yield self
        finally:
            self._open = False
            self._queue.put(None)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.join)
                connection.close()

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run one job and wait until it is on the disk; a cancelled caller's job is still done.

        Raises:
            StoreClosed: not running.
            StoreError: the database failed; nothing of this job was stored.
        """
        if not self._open:
            raise StoreClosed("the store is closed")
        pending = _Pending(job, trio.lowlevel.current_trio_token())
        self._queue.put(pending)
        await pending.done.wait()
        if pending.error is not None:
            if isinstance(pending.error, sqlite3.Error):
                raise StoreError(f"the database failed: {pending.error}") from pending.error
            raise pending.error
        return pending.result  # type: ignore[no-any-return]

    def _work(self, connection: sqlite3.Connection) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = [first], False
            while len(batch) < _MAX_BATCH:
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
                if more is None:
                    last = True
                    break
                batch.append(more)
            self._commit(connection, batch)
            if last:
                return

    def _commit(self, connection: sqlite3.Connection, batch: list[_Pending]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for pending in batch:
                connection.execute("SAVEPOINT job")
                try:
                    pending.result = pending.job(connection)
                except Exception as error:  # noqa: BLE001 - handed to whoever gave the job
                    pending.error = error
                    connection.execute("ROLLBACK TO job")
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for pending in batch:
                pending.error = pending.error or error
        for pending in batch:
            try:
                pending.token.run_sync_soon(pending.done.set)
            except trio.RunFinishedError:
                return
