"""How long things are kept, and their removal in small pieces, so that no write waits long for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from owm.store._database import Job
from owm.store._entries import Content

__all__ = ["TILE", "ContentRoom", "Retention", "removals"]

TILE: Final = 256  #: entries of the dispatch log that are forgotten together: their common hash stays
_PIECE: Final = 1000  #: rows removed in one transaction
_SIZE: Final = "length(data) + length(CAST(text AS BLOB))"
_LARGEST_SHARE: Final = 4  #: one content may take a quarter of the room for all


@dataclass(frozen=True, slots=True)
class Retention:
    """What the store keeps."""

    task_seconds: float = 90 * 86400.0  #: of finished tasks, and of dispatches
    most_tasks: int = 1_000_000
    contents: bool = False  #: whether inputs and outputs are kept, not only their hashes
    content_seconds: float = 7 * 86400.0
    content_bytes: int = 256 << 20  #: of all together


class ContentRoom:
    """Keeps inputs and outputs within their room; used in the store's thread alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = -1  #: bytes, at least; looked up when it is used up

    def keep(self, db: sqlite3.Connection, content: Content, now: float) -> None:
        """Store one; the oldest make room for it."""
        size = len(content.data) + len(content.text.encode())
        if size > self._most // _LARGEST_SHARE:
            return
        row = (content.hash, content.data, content.text, now)
        db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", row)
        self._left -= size
        if self._left < 0:
            (total,) = db.execute(f"SELECT coalesce(sum({_SIZE}), 0) FROM contents").fetchone()  # noqa: S608 - constant
            if total > self._most:
                total -= _make_room(db, total - self._most * 9 // 10)
            self._left = self._most - total


def _make_room(db: sqlite3.Connection, needed: int) -> int:
    """Remove the oldest; returns the bytes that this made free."""
    oldest, free = [], 0
    for name, size in db.execute(f"SELECT hash, {_SIZE} FROM contents ORDER BY time"):  # noqa: S608 - constant
        if free >= needed:
            break
        oldest.append((name,))
        free += size
    db.executemany("DELETE FROM contents WHERE hash = ?", oldest)
    return free


def removals(retention: Retention, now: float) -> Iterator[Job[int]]:
    """Jobs that each remove up to a piece and return how many rows; each is to be run until nothing is left."""
    oldest = now - retention.task_seconds

    def tasks_of_age(db: sqlite3.Connection) -> int:
        return _remove_tasks(db, oldest)

    beyond: list[tuple[float] | None] = []

    def tasks_beyond(db: sqlite3.Connection) -> int:
        if not beyond:  # looked up once: it takes a walk over all that is kept
            sql = "SELECT created FROM tasks ORDER BY created DESC LIMIT 1 OFFSET ?"
            beyond.append(db.execute(sql, (retention.most_tasks,)).fetchone())
        return _remove_tasks(db, beyond[0][0], including=True) if beyond[0] else 0

    def contents_of_age(db: sqlite3.Connection) -> int:
        cutoff = now - retention.content_seconds if retention.contents else float("inf")
        sql = "DELETE FROM contents WHERE hash IN (SELECT hash FROM contents WHERE time < ? LIMIT ?)"
        return db.execute(sql, (cutoff, _PIECE)).rowcount

    def dispatches(db: sqlite3.Connection) -> int:
        return _remove_dispatches(db, oldest)

    yield from (tasks_of_age, tasks_beyond, contents_of_age, dispatches)


def _remove_tasks(db: sqlite3.Connection, before: float, *, including: bool = False) -> int:
    compared = "<=" if including else "<"
    found = (
        f"SELECT id, role FROM tasks WHERE created {compared} ? AND finished IS NOT NULL "  # noqa: S608 - constants
        "ORDER BY created LIMIT ?"
    )
    sql = f"DELETE FROM tasks WHERE (id, role) IN ({found})"  # noqa: S608 - constants
    return db.execute(sql, (before, _PIECE)).rowcount


def _remove_dispatches(db: sqlite3.Connection, before: float) -> int:
    """Whole tiles of old entries whose hash is kept; never the newest entry, by which the log's size is known."""
    first, last = db.execute("SELECT min(position), max(position) FROM dispatches").fetchone()
    if last is None:
        return 0
    sql = "SELECT position FROM dispatches WHERE time >= ? ORDER BY position LIMIT 1"
    kept = db.execute(sql, (before,)).fetchone()
    end = min(last if kept is None else kept[0], first + 4 * TILE) // TILE
    hashed = "SELECT count(*) FROM dispatch_nodes WHERE level = 8 AND position >= ? AND position < ?"
    if end * TILE <= first or db.execute(hashed, (first // TILE, end)).fetchone()[0] < end - first // TILE:
        return 0
    return db.execute("DELETE FROM dispatches WHERE position < ?", (end * TILE,)).rowcount
