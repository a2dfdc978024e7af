"""Makes docs/performance.md from what the benchmarks wrote into benchmarks/results/*.json.

Such a file holds ``{"benchmark", "measured_at", "machine", "command", "results": [...]}``, each result with the keys
``metric, unit, ours, baseline, baseline_name, ratio, goal, relation, met``. Files of an older form, whose ``rows`` say
the same in words, are read too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: How older files put ratio, rival, goal and a miss into one text.
_TARGET = re.compile(
    r"^(?:(?P<ratio>[\d.e+-]+) of (?P<rival>.+?))?"
    r"(?:(?:, goal )?(?P<relation><=|>=) (?P<goal>[\d.e+-]+))?(?P<missed>: missed)?$"
)


def render() -> str:
    """The page."""
    lines = [
        "# Performance",
        "",
        "Every figure was measured by a program in `benchmarks/`, which wrote it to `benchmarks/results/`. The page is",
        "made from those files by `make docs`; a benchmark whose file is missing has not been run on the present code.",
        "A goal bounds the ratio where there is something to compare with, and otherwise our own figure.",
    ]
    for path in sorted(RESULTS.glob("*.json")) if RESULTS.is_dir() else []:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not ("results" in found or "rows" in found):
            continue
        results = found["results"] if "results" in found else [from_row(row) for row in found["rows"]]
        lines += ["", f"## {found['benchmark']}", ""]
        lines += [f"`{found['command']}`, {found['measured_at']}, on {found['machine']}.", ""]
        lines += ["| what | ours | the other's | ratio | goal | met |", "|---|---|---|---|---|---|"]
        lines += [_line(result) for result in results]
    return "\n".join(lines) + "\n"


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """A result from a row of an older file; what the rival measured is not known from there."""
    match = _TARGET.match(row.get("target") or "")
    said = match.groupdict() if match else {}
    goal = None if said.get("goal") is None else float(said["goal"])
    return {
        "metric": row["name"],
        "unit": row.get("unit", ""),
        "ours": row["value"],
        "baseline": None,
        "baseline_name": said.get("rival"),
        "ratio": None if said.get("ratio") is None else float(said["ratio"]),
        "goal": goal,
        "relation": said.get("relation"),
        "met": None if goal is None else not said.get("missed"),
    }


def _line(result: dict[str, Any]) -> str:
    other = " ".join(
        part for part in (_figure(result["baseline"], result["unit"]), result["baseline_name"] or "") if part
    )
    cells = (
        result["metric"],
        _figure(result["ours"], result["unit"]),
        other,
        "" if result["ratio"] is None else f"{result['ratio']:.2g}",
        "" if result["goal"] is None else f"{result['relation']} {result['goal']:.4g}",
        {True: "yes", False: "**no**", None: ""}[result["met"]],
    )
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}".strip()
