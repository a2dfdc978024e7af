"""Fuzz targets: each module has ``fuzz_one(data: bytes)``, as atheris wants it, and runs by itself without atheris."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

__all__ = ["main"]


def main(fuzz_one: Callable[[bytes], None]) -> None:
    """Run a target: under atheris where it is installed, else on random bytes for ``argv[1]`` seconds (10)."""
    try:
        import atheris
    except ImportError:
        seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
        source, count, end = random.Random(0), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            fuzz_one(source.randbytes(source.randrange(512)))
            count += 1
        print(f"{count:,} inputs, no failure")
        return
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
