"""The guide's worked examples are put where the guide says; the scenarios then run and hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """The code block that follows the guide's mark."""
    found = re.search(rf"<!-- tested: {re.escape(name)} -->\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None, name
    return found.group(1)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the simulator to edit."""
    shutil.copytree(ROOT / "simulations", tmp_path / "simulations", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def replace_line(path: Path, start: str, new: str) -> None:
    """Put ``new`` in place of the one line that starts with ``start``."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (at,) = [n for n, line in enumerate(lines) if line.startswith(start)]
    lines[at] = new
    path.write_text("".join(lines), encoding="utf-8")


def insert_before(path: Path, anchor: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(anchor) == 1, anchor
    path.write_text(text.replace(anchor, new + anchor), encoding="utf-8")


def run(folder: Path, scenario: str) -> dict[str, Any]:
    """Run a scenario with the simulator of ``folder``."""
    (folder / "mine.toml").write_text(scenario, encoding="utf-8")
    program = "import sys; from simulations.cli import simulate; simulate(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(folder / "mine.toml"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_scenario_of_ones_own(copy: Path) -> None:
    found = run(copy, example("my-churn.toml"))
    assert found["scenario"] == "my-churn"
    assert set(found["invariants"]) == {"lookup_success", "delivery"}


def test_a_new_churn_model(copy: Path) -> None:
    churn = copy / "simulations" / "_churn.py"
    kinds = 'model.kind in ("exponential", "weibull")'
    assert "lognormal" not in churn.read_text(encoding="utf-8")
    replace_line(churn, "    kind: Literal[", example("churn kind"))
    insert_before(churn, '        if model.kind == "weibull":', example("churn draw"))
    insert_before(
        churn, '        shape = self._model.shape if self._model.kind == "weibull"', example("churn residual")
    )
    insert_before(churn, "        left: float = scale", "")
    text = churn.read_text(encoding="utf-8")
    assert "self._" + kinds in text
    churn.write_text(text.replace(kinds, kinds.replace(")", ', "lognormal")')), encoding="utf-8")
    found = run(copy, example("churn scenario"))
    assert found["metrics"]["online"] < 55, "some are away"
    assert found["invariants"] == {"lookup_success": True}


def test_a_new_adversary(copy: Path) -> None:
    adversaries, scenario = copy / "simulations" / "_adversaries.py", copy / "simulations" / "_scenario.py"
    adversaries.write_text(adversaries.read_text(encoding="utf-8") + "\n\n" + example("adversary"), encoding="utf-8")
    replace_line(scenario, '    kind: Literal["none", "sybil"', example("adversary kind"))
    found = run(copy, example("adversary scenario"))
    assert found["metrics"]["table_live_share"] < 0.98, "the attackers are in the tables"
    assert found["invariants"] == {"lookup_success": True}
