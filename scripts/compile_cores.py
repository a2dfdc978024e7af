"""Compile the protocol cores and the simulator's engine with mypyc: ``make compile``.

The sources stay plain Python and everything runs without this; compiled, the simulator is almost twice as fast and
gossip costs a peer a sixth less. What then remains is mostly waiting for memory. The compiled copy lies apart from the
sources, under a name made of their digest, so one that is out of date is never used. ``owm simulate --compiled``,
``owm peer --compiled`` and ``owm devnet --compiled`` run on it. Needs a C compiler.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from owm.compiled import compiled_folder

ROOT = Path(__file__).parent.parent
PACKAGES = ("owm", "simulations")
PATTERNS = ("owm/dht/_core*.py", "owm/gossip/_core*.py", "owm/net/_core_[fny]*.py")
MODULES = ("_engine", "_links", "_node", "_world")


def compile_cores() -> Path:
    """Build, and return the folder to put on the path.

    Raises:
        SystemExit: the compiler failed; the message holds the end of what it said.
    """
    target = compiled_folder()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))  # two may compile at once
    try:
        _compile(building)
        with contextlib.suppress(OSError):  # somebody else was faster
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for old in target.parent.iterdir():
        if old != target and not old.name.startswith("building-"):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _compile(building: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, building / package, ignore=shutil.ignore_patterns("__pycache__"))
    (building / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n", encoding="utf-8")
    sources = sorted(str(path.relative_to(ROOT)) for pattern in PATTERNS for path in ROOT.glob(pattern))
    sources += [f"simulations/{name}.py" for name in MODULES]
    mypyc = Path(sys.executable).with_name("mypyc")
    done = subprocess.run(  # noqa: S603 - our own sources
        [str(mypyc), *sources], cwd=building, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"mypyc failed; it needs a C compiler (apt-get install gcc):\n{(done.stdout + done.stderr)[-2000:]}")
    shutil.rmtree(building / "build", ignore_errors=True)


if __name__ == "__main__":
    print(f"compiled cores are in {compile_cores()}")
