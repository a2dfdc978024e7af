"""Where the compiled copy of the protocol cores lies, and how to run on it.

`make compile` makes it in a checkout; everything runs without it, more slowly.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

from owm.errors import UsageError

__all__ = ["compiled_folder", "is_compiled", "run_compiled"]

_ROOT: Final = Path(__file__).parent.parent


def compiled_folder() -> Path:
    """The folder for the sources as they are now; it exists when they have been compiled."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for package in ("owm", "simulations"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return _ROOT / ".cache" / "compiled" / digest.hexdigest()[:16]


def is_compiled() -> bool:
    """Whether this process runs on compiled cores."""
    return any(_ROOT.glob("owm/gossip/_core.*.so"))  # a look at the folder: importing takes a third of a second


def run_compiled() -> None:
    """Start this command again on the compiled cores, in place of this process, unless it runs on them already.

    Raises:
        UsageError: they were not compiled, or are out of date.
    """
    if is_compiled():
        return
    folder = compiled_folder()
    if not folder.exists():
        raise UsageError("there are no compiled cores for these sources: run `make compile` first, or leave --compiled")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # or the folder that we are in comes first
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
