"""The database's tables and how older files are brought up to date."""

from __future__ import annotations

import sqlite3
from typing import Final

from owm.store.errors import SchemaTooNew

__all__ = ["SCHEMA_VERSION", "prepare"]

# One entry per version; each is applied once, in one transaction. Entries are never changed, only added.
_MIGRATIONS: Final = (
    (
        """CREATE TABLE tasks (
            id TEXT NOT NULL, role TEXT NOT NULL, type TEXT NOT NULL, peer BLOB NOT NULL, state TEXT NOT NULL,
            input_hash BLOB NOT NULL, output_hash BLOB NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
            prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, payment TEXT NOT NULL,
            error TEXT NOT NULL, receipt BLOB, countersignature BLOB, PRIMARY KEY (id, role)) WITHOUT ROWID""",
        "CREATE INDEX tasks_created ON tasks (created)",
        "CREATE TABLE sequences (type TEXT PRIMARY KEY, ceiling INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE state (space TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
            PRIMARY KEY (space, key)) WITHOUT ROWID""",
        "CREATE TABLE dispatches (position INTEGER PRIMARY KEY, leaf BLOB NOT NULL)",
    ),
    (
        "ALTER TABLE tasks ADD COLUMN salt BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE tasks ADD COLUMN job TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE tasks ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1",
        "CREATE TABLE contents (hash BLOB PRIMARY KEY, data BLOB NOT NULL, text TEXT NOT NULL, time REAL NOT NULL)",
        "CREATE INDEX contents_time ON contents (time)",
        "ALTER TABLE dispatches ADD COLUMN time REAL NOT NULL DEFAULT 0",
        "UPDATE dispatches SET time = CAST(strftime('%s', 'now') AS REAL)",
        """CREATE TABLE dispatch_nodes (level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
            PRIMARY KEY (level, position)) WITHOUT ROWID""",
    ),
)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


def prepare(connection: sqlite3.Connection) -> None:
    """Create or upgrade the tables; raises SchemaTooNew for a file from a newer OWM, which is left untouched."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"the database has schema {version}, this OWM knows up to {SCHEMA_VERSION}: upgrade OWM, "
            "or point node.data_dir at another directory"
        )
    for number in range(version, SCHEMA_VERSION):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
