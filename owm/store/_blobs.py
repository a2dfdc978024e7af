"""Content-addressed files: a blob's name is the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import trio

from owm.store.errors import BlobDamaged, BlobMissing, StoreError

__all__ = ["CHUNK_BYTES", "BlobStore"]

CHUNK_BYTES: Final = 1 << 20


class BlobStore:
    """Blobs in a directory, ``ab/cdef...``. A blob appears whole, by an atomic rename, or not at all.

    The work is done in trio's worker threads, so the event loop never waits for the disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the blob is or would be; raises ValueError unless ``sha256`` is 64 lower-case hex digits."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"not a SHA-256 in hex: {sha256[:80]!r}")
        return self._root / sha256[:2] / sha256[2:]

    async def add(self, source: bytes | Path, expected: str | None = None) -> str:
        """Store bytes or a copy of a file and return its SHA-256 in hex; adding it again is harmless.

        Raises:
            BlobDamaged: the content is not what ``expected`` says; nothing was stored.
            StoreError: the disk failed.
        """
        return await trio.to_thread.run_sync(self._add, source, expected)

    async def open(self, sha256: str) -> list[bytes]:
        """The whole blob in chunks of at most 1 MiB, verified before any is returned: for blobs that fit in memory.

        Raises:
            BlobMissing: it is not here.
            BlobDamaged: its bytes have changed; it is removed, so that it can be fetched again.
        """
        return await trio.to_thread.run_sync(self._open, sha256)

    async def has(self, sha256: str) -> bool:
        """Whether the blob is here; its bytes are checked only by :meth:`open`."""
        return await trio.to_thread.run_sync(self.path(sha256).is_file)

    def _add(self, source: bytes | Path, expected: str | None) -> str:
        temporary = self._root / f".incoming-{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            name = digest.hexdigest()
            if expected is not None and name != expected:
                raise BlobDamaged(f"expected {expected}, got {name}")
            target = self.path(name)
            target.parent.mkdir(exist_ok=True)
            temporary.replace(target)
            _sync_directory(target.parent)
        except OSError as error:
            raise StoreError(f"cannot store a blob under {self._root}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def _open(self, sha256: str) -> list[bytes]:
        path = self.path(sha256)
        digest, chunks = hashlib.sha256(), []
        try:
            with path.open("rb") as file:
                for chunk in _read(file):
                    digest.update(chunk)
                    chunks.append(chunk)
        except FileNotFoundError as error:
            raise BlobMissing(f"no blob {sha256}") from error
        except OSError as error:
            raise StoreError(f"cannot read the blob {sha256}: {error.strerror}") from error
        if digest.hexdigest() != sha256:
            path.unlink(missing_ok=True)
            raise BlobDamaged(f"the blob {sha256} is damaged and was removed")
        return chunks


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield from (source[start : start + CHUNK_BYTES] for start in range(0, len(source), CHUNK_BYTES))
        return
    with source.open("rb") as file:
        yield from _read(file)


def _read(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
