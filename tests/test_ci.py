"""What CI takes for a failure, and what it merely says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("says", "exits", "status", "told"),
    [
        ("No known vulnerabilities found", 0, 0, "No known vulnerabilities found"),
        ("Found 1 known vulnerability in 1 package", 1, 1, "Found 1 known vulnerability"),
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org')", 1, 0, "skipped"),
        ("urllib3.exceptions.NameResolutionError: Failed to resolve 'pypi.org'", 1, 0, "skipped"),
        ("Found 2 known vulnerabilities in 1 package; ConnectionError", 1, 1, "Found 2"),
        ("ERROR: requirement is not pinned: constraints.txt", 1, 1, "not pinned"),
        ("Traceback (most recent call last): KeyError", 1, 1, "KeyError"),
        ("no such option: --disable-pip", 2, 1, "no such option"),
    ],
)
def test_the_audit_is_skipped_for_want_of_a_network_only(
    tmp_path: Path, says: str, exits: int, status: int, told: str
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {exits}\n")
    program.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "audit"], env={**os.environ, "PIP_AUDIT": str(program)}, capture_output=True, text=True
    )
    assert done.returncode == status
    assert told in done.stdout


def test_an_audit_that_knew_no_package_is_none(tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\ngrep == constraints.txt | sed 's/$/: could not be audited/'\n")
    program.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "audit"], env={**os.environ, "PIP_AUDIT": str(program)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.startswith("skipped")) == (0, True)


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("1", 1)])
def test_foreign_peers_that_cannot_be_installed_fail_in_ci_only(tmp_path: Path, ci: str, status: int) -> None:
    """As for a user without npm who is not root: pip has no network here, and nothing is installed yet."""
    environment = {**os.environ, "OWM_FOREIGN_DIR": str(tmp_path), "CI": ci, "PATH": "", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.foreign._install"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert "skipped" in done.stderr


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("1", 1)])
def test_a_browser_that_cannot_be_installed_fails_in_ci_only(ci: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.page._install"],
        cwd=ROOT,
        env={**os.environ, "CI": ci, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Chromium is missing" in done.stdout) == (status, True)
