"""What a running peer leaves in its data folder: a lock against a second peer, and where it can be reached."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from owm.errors import ConfigError

__all__ = ["PeerFile", "data_folder_lock"]


@contextmanager
def data_folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; raises ConfigError when another peer has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "peer.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another peer runs on {folder}: stop it, or give this one its own folder with --data-dir"
            ) from error
        yield


class PeerFile:
    """``peer.json``, for the command line to find us by; it is removed at the end of the block.

    It is written once everything runs, and stays while the peer stops.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "peer.json"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, content: Mapping[str, Any]) -> None:
        """Write it anew, at once as a whole."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({**content, "pid": os.getpid()}), encoding="utf-8")
        fresh.replace(self._path)
