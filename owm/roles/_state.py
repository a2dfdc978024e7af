"""What a running peer leaves in its data folder: a lock against a second peer, and where it can be reached."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from owm.errors import ConfigError

__all__ = ["data_folder_lock", "peer_file"]


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


@contextmanager
def peer_file(folder: Path, content: Mapping[str, Any]) -> Iterator[None]:
    """Write ``peer.json`` for the command line to find us by, and remove it at the end."""
    path = folder / "peer.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**content, "pid": os.getpid()}), encoding="utf-8")
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
