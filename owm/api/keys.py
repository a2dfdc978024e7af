"""API keys in a small SQLite file that the gateway and ``owm keys`` share.

A key is ``owm_`` and 256 random bits; only its SHA-256 is stored, which is enough for a secret that cannot be guessed.
Both processes read and write the same file (WAL), so what ``owm keys`` does holds in a running gateway within a second.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from owm.clock import Clock, SystemClock
from owm.errors import TemporaryError, UsageError

__all__ = ["ApiKey", "KeyStore", "NewKey"]

_PREFIX: Final = "owm_"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    per_day INTEGER NOT NULL,
    created REAL NOT NULL,
    revoked REAL
) STRICT
"""
_COLUMNS: Final = "id, name, per_day, created, revoked"


class ApiKey(msgspec.Struct, frozen=True):
    """One key, without its secret."""

    id: str  #: names the key in commands, answers and logs
    name: str  #: for people
    per_day: int  #: requests within 24 hours; 0 for no limit
    created: float  #: Unix seconds
    revoked: float | None  #: Unix seconds, or None while it is valid


class NewKey(msgspec.Struct, frozen=True):
    """A key just made. The secret is shown once and stored nowhere."""

    key: ApiKey
    secret: str


class KeyStore:
    """The keys of one gateway. All methods are synchronous and thread-safe; call them off the event loop.

    Args:
        path: the SQLite file, made if it is not there; its mode is 0600 afterwards.
        clock: wall time, for the dates.
        random_bytes: the source of secrets.

    Raises:
        TemporaryError: the file cannot be opened or is locked for longer than two seconds.
    """

    def __init__(
        self, path: Path, clock: Clock | None = None, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._clock = clock or SystemClock()
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            self._database = sqlite3.connect(path, timeout=2.0, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise TemporaryError(f"the API keys in {path} cannot be opened: {error}") from error

    def add(self, name: str, per_day: int = 100) -> NewKey:
        """Make a key. Raises UsageError for an empty name, one over 64 characters, or a negative limit."""
        if not name or len(name) > 64:
            raise UsageError("a key needs a name of 1 to 64 characters")
        if not 0 <= per_day <= 1_000_000:
            raise UsageError("requests per day must lie between 0 (no limit) and 1000000")
        secret = _PREFIX + self._random_bytes(32).hex()
        key = ApiKey("key_" + self._random_bytes(6).hex(), name, per_day, self._clock.time(), None)
        self._execute(
            "INSERT INTO api_keys (id, name, hash, per_day, created) VALUES (?, ?, ?, ?, ?)",
            (key.id, name, _digest(secret), per_day, key.created),
        )
        return NewKey(key, secret)

    def list(self) -> tuple[ApiKey, ...]:
        """All keys, the oldest first, revoked ones included."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM api_keys ORDER BY created, id")  # noqa: S608 - constant
        return tuple(ApiKey(*row) for row in rows)

    def revoke(self, key_id: str) -> ApiKey:
        """End a key's validity. Raises UsageError if there is no such key; revoking twice changes nothing."""
        self._execute("UPDATE api_keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock.time(), key_id))
        rows = self._execute(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?", (key_id,))  # noqa: S608 - constant
        if not rows:
            raise UsageError(f"there is no key {key_id!r}; `owm keys list` shows them")
        return ApiKey(*rows[0])

    def find(self, secret: str) -> ApiKey | None:
        """The valid key that this is the secret of, or None."""
        if not secret.startswith(_PREFIX) or len(secret) > 200:
            return None
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM api_keys WHERE hash = ? AND revoked IS NULL",  # noqa: S608 - constant
            (_digest(secret),),
        )
        return ApiKey(*rows[0]) if rows else None

    def close(self) -> None:
        """Close the file; no method works afterwards."""
        with self._lock:
            self._database.close()

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> Sequence[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise TemporaryError(f"the API keys cannot be read or written: {error}") from error


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
