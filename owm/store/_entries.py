"""A line of the task log, and what was sent and answered."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec

from owm.store.errors import StoreError

__all__ = ["COLUMNS", "Content", "TaskEntry", "read_tasks", "task_view"]


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


def read_tasks(path: Path, limit: int) -> list[TaskEntry]:
    """The newest lines of a log on disk, opened read-only, so that a peer that starts meanwhile is not disturbed.

    A file from an older version lacks some fields, which then have their defaults.

    Raises:
        StoreError: there is no log that could be read.
    """
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            there = {row[1] for row in connection.execute("PRAGMA table_info(tasks)")}
            columns = [name for name in COLUMNS if name in there]
            sql = f"SELECT {', '.join(columns)} FROM tasks ORDER BY created DESC, id LIMIT ?"  # noqa: S608 - constants
            rows = connection.execute(sql, (limit,)).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"cannot read the task log {path}: {error}") from error
    return [TaskEntry(**dict(zip(columns, row, strict=True))) for row in rows]
