"""Makes docs/performance.md from what the benchmarks wrote into benchmarks/results/*.json.

Such a file holds ``{"benchmark", "measured_at", "machine", "command", "rows": [{"name", "value", "unit", "target"}]}``.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def render() -> str:
    """The page."""
    lines = [
        "# Performance",
        "",
        "Every figure was measured by a program in `benchmarks/`, which wrote it to `benchmarks/results/`. The page is",
        "made from those files by `make docs`; a benchmark whose file is missing has not been run on the present code.",
    ]
    for path in sorted(RESULTS.glob("*.json")) if RESULTS.is_dir() else []:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "rows" not in found:
            continue
        lines += ["", f"## {found['benchmark']}", ""]
        lines += [f"`{found['command']}`, {found['measured_at']}, on {found['machine']}.", ""]
        lines += ["| what | measured | target |", "|---|---|---|"]
        lines += [
            f"| {row['name']} | {row['value']:.4g} {row.get('unit', '')} | {row.get('target') or '-'} |".replace(
                " |", " |"
            )
            for row in found["rows"]
        ]
    return "\n".join(lines) + "\n"
