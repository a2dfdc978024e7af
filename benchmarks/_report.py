"""What all benchmarks share: options, a table for people, one JSON object for programs.

A benchmark is a function that takes whether it should be quick and returns results::

    def run(quick: bool) -> list[Result]: ...

    if __name__ == "__main__":
        main("transport", run)

It measures ours beside a baseline in the same run, so that the machine's speed cancels out of the ratio.
"""

from __future__ import annotations

import argparse
import json
import logging
import operator
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, Literal

import structlog
from rich.console import Console
from rich.table import Table

__all__ = ["Result", "main", "save"]

RESULTS: Final = Path(__file__).parent / "results"

_RELATIONS: Final = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Result:
    """One measured number.

    The goal bounds the ratio where there is a baseline, and otherwise our own number.
    """

    metric: str
    unit: str
    ours: float
    baseline: float | None = None
    baseline_name: str | None = None
    goal: float | None = None
    relation: Literal["<=", ">="] = "<="

    @property
    def ratio(self) -> float | None:
        """Ours divided by the baseline."""
        return self.ours / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None when there is none."""
        if self.goal is None:
            return None
        bounded = self.ours if self.ratio is None else self.ratio
        return bool(_RELATIONS[self.relation](bounded, self.goal))

    def as_json(self) -> dict[str, object]:
        return {
            "metric": self.metric,
            "unit": self.unit,
            "ours": self.ours,
            "baseline": self.baseline,
            "baseline_name": self.baseline_name,
            "ratio": self.ratio,
            "goal": self.goal,
            "relation": None if self.goal is None else self.relation,
            "met": self.met,
        }


def main(
    name: str,
    run: Callable[[bool], Sequence[Result]],
    argv: Sequence[str] | None = None,
    *,
    parts: Mapping[str, Callable[[bool], Sequence[Result]]] | None = None,
) -> None:
    """Run a benchmark from the command line; exits 1 when a goal is missed and ``--check`` was given.

    ``parts`` can be run by themselves, with ``--part``; what ``--save`` wrote of other parts then stays.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=run.__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default when piped)")
    parser.add_argument("--quick", action="store_true", help="take less than a minute; less exact")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results, for docs/performance.md")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    if parts:
        parser.add_argument("--part", choices=sorted(parts), help="run this part alone")
    options = parser.parse_args(argv)
    part: str | None = getattr(options, "part", None)
    structlog.configure(  # the report alone belongs on standard output
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    results = parts[part](options.quick) if parts and part else run(options.quick)
    if options.json or not sys.stdout.isatty():
        print(json.dumps({"benchmark": name, "results": [result.as_json() for result in results]}))
    else:
        _print_table(name, results)
    if options.save:
        command = f"python -m benchmarks.{name}{' --quick' * options.quick}"
        save(name, [result.as_json() for result in results], command, keep=part is not None)
    if options.check and any(result.met is False for result in results):
        raise SystemExit(1)


def save(name: str, results: Sequence[dict[str, object]], command: str, *, keep: bool = False) -> Path:
    """Write a run where `make docs` finds it. ``keep``: results of other metrics that are there stay."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    found = {"benchmark": name, "measured_at": f"{date.today():%Y-%m-%d}", "machine": machine, "command": command}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")).get("results", []) if keep and path.exists() else []
    new = {(result["metric"], result["baseline_name"]) for result in results}
    results = [*(result for result in before if (result["metric"], result["baseline_name"]) not in new), *results]
    path.write_text(json.dumps({**found, "results": results}, indent=1) + "\n", encoding="utf-8")
    return path


def _print_table(name: str, results: Sequence[Result]) -> None:
    table = Table(title=name)
    table.add_column("metric")
    for column in ("ours", "baseline", "ratio", "goal"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for result in results:
        baseline = "" if result.baseline is None else f"{_figure(result.baseline)} {result.baseline_name or ''}".strip()
        table.add_row(
            result.metric,
            f"{_figure(result.ours)} {result.unit}",
            baseline,
            "" if result.ratio is None else f"{result.ratio:.2f}",
            "" if result.goal is None else f"{result.relation} {result.goal:g}",
            {True: "[green]yes", False: "[red]no", None: ""}[result.met],
        )
    Console().print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
