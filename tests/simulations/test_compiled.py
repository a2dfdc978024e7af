"""The compiled copy of the cores: a help for speed that changes nothing, and never out of date."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simulations._compiled import compiled_folder

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = ("simulate", "baseline", "--nodes", "60", "--duration", "60", "--json")


def owm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owm", *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("gcc") is None and not os.environ.get("CI"), reason="needs a C compiler")
def test_compiled_cores_give_the_same_trace() -> None:
    folder = compiled_folder()
    if folder.exists():
        shutil.rmtree(folder)
    refused = owm(*ARGUMENTS, "--compiled")
    assert refused.returncode == 2, refused.stderr
    assert "make compile" in refused.stderr
    made = subprocess.run(
        [sys.executable, "-m", "scripts.compile_cores"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert made.returncode == 0, made.stderr + made.stdout
    assert str(folder) in made.stdout
    plain, compiled = (json.loads(owm(*ARGUMENTS, *more).stdout) for more in ((), ("--compiled",)))
    assert plain["trace_hash"] == compiled["trace_hash"]
    assert plain["events"] == compiled["events"]
