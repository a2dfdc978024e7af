"""Every command that the README shows is run, as far as one machine without a network can."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Commands that are run by other tests (the suite cannot run itself), or that never end by themselves.
ELSEWHERE = {
    "make run": "the devnet tests",
    "make test": "this very run",
    ".venv/bin/owm devnet": "the devnet tests",
    '.venv/bin/owm ask "Why is the sky blue?"': "the devnet tests",
    ".venv/bin/owm peer --data-dir ./my-peer --bootstrap /ip4/192.0.2.1/tcp/9000": "the devnet tests",
    '.venv/bin/owm devnet --peers 5 --ask "What is the capital of France?"': "the devnet tests",
}
DOCTOR_FINDS_NO_BOOTSTRAP = (0, 1)  # what else it finds depends on the machine


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_first_commands_are_the_main_job_and_the_tests() -> None:
    assert commands()[:2] == ["make run", "make test"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    ran = 0
    for command in commands():
        if command in ELSEWHERE:
            continue
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/owm", command
        outcome = subprocess.run(
            [sys.executable, "-m", "owm", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        allowed = DOCTOR_FINDS_NO_BOOTSTRAP if "doctor" in arguments else (0,)
        assert outcome.returncode in allowed, (command, outcome.stderr)
        assert "Traceback" not in outcome.stderr
        ran += 1
    assert ran == len(commands()) - len(ELSEWHERE)
