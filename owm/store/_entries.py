"""A line of the task log, and what was sent and answered."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec

from owm.store.errors import StoreError

__all__ = ["COLUMNS", "Content", "TaskEntry", "read_content", "read_tasks", "task_view"]


class TaskEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the task log (SRS-NODE-06): hashes of what went in and out, timing and payment status.

    A requester has a line for each attempt, since each is a task of its own to the worker that was asked.
    """

    id: str
    role: str  #: "worker" or "requester": what we were
    type: str
    peer: bytes  #: the other side's peer id; empty before anyone was chosen
    state: str
    input_hash: bytes = b""
    output_hash: bytes = b""
    created: float = 0.0  #: unix seconds
    started: float | None = None
    finished: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    payment: str = "none"  #: "none", "due", "paid"
    error: str = ""
    receipt: bytes | None = None  #: the worker's signed envelope
    countersignature: bytes | None = None  #: the requester's signature of the receipt's id
    salt: bytes = b""  #: of the input's hash: with it, who has the input can check the hash
    job: str = ""  #: the first attempt's id, of a requester's line
    attempt: int = 1  #: which attempt this was, of a requester's line


class Content(msgspec.Struct, frozen=True):
    """What a task's input or output hash is the hash of."""

    hash: bytes  #: SHA-256 of ``data``
    data: bytes
    text: str = ""  #: the answer as text, of an output: ``data`` holds only token ids


COLUMNS: Final = TaskEntry.__struct_fields__
_HEX: Final = ("peer", "input_hash", "output_hash", "salt")
_LEFT_OUT: Final = ("receipt", "countersignature")


def task_view(entry: TaskEntry) -> dict[str, Any]:
    """A line as JSON shows it, whether the peer runs or not: bytes in hex, signatures left out."""
    fields = {name: getattr(entry, name) for name in COLUMNS if name not in _LEFT_OUT}
    return {name: value.hex() if name in _HEX else value for name, value in fields.items()}


def read_tasks(path: Path, limit: int, task_id: str = "") -> list[TaskEntry]:
    """The newest lines of a log on disk, opened read-only, so that a peer that starts meanwhile is not disturbed.

    A file from an older version lacks some fields, which then have their defaults.

    Args:
        task_id: only the lines of this task: ours as worker, as requester, and further attempts of it.

    Raises:
        StoreError: there is no log that could be read.
    """
    columns = [row[1] for row in _read(path, "PRAGMA table_info(tasks)", ()) if row[1] in COLUMNS]
    where = ""
    values: tuple[Any, ...] = (limit,)
    if task_id:
        where = " WHERE id = ? OR job = ?" if "job" in columns else " WHERE id IN (?, ?)"
        values = (task_id, task_id, limit)
    sql = f"SELECT {', '.join(columns)} FROM tasks{where} ORDER BY created DESC, id LIMIT ?"  # noqa: S608 - constants
    rows = _read(path, sql, values)
    return [TaskEntry(**dict(zip(columns, row, strict=True))) for row in rows]


def read_content(path: Path, sha256: bytes) -> Content | None:
    """A kept input or output from a log on disk; None where it is not kept, or not what its hash says.

    Raises:
        StoreError: there is no log that could be read.
    """
    if not _read(path, "SELECT 1 FROM sqlite_master WHERE name = 'contents'", ()):
        return None
    for row in _read(path, "SELECT hash, data, text FROM contents WHERE hash = ?", (sha256,)):
        found = Content(*row)
        return found if hashlib.sha256(found.data).digest() == sha256 else None
    return None


def _read(path: Path, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"cannot read the task log {path}: {error}") from error
