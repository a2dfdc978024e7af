"""What a sweep leaves behind: tables as Parquet and CSV, plots, and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from owm.errors import UsageError
from simulations._measure import Measurements, Outcome, confidence
from simulations._plots import plots
from simulations._scenario import Scenario

__all__ = ["write_report"]


def _columns(rows: Sequence[tuple[int, Any]]) -> dict[str, list[Any]]:
    if not rows:
        return {}
    names = [f.name for f in msgspec.structs.fields(type(rows[0][1]))]
    columns: dict[str, list[Any]] = {"seed": [seed for seed, _ in rows]}
    for name in names:
        columns[name] = [getattr(row, name) for _, row in rows]
    return columns


def _write_table(folder: Path, name: str, rows: Sequence[tuple[int, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table(_columns(rows))
    parquet.write_table(table, folder / f"{name}.parquet")
    csv.write_csv(table, folder / f"{name}.csv")


def _metric_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, float, float, int]]:
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.metrics)
    rows = []
    for name in names:
        values = [float(v) for o in outcomes if (v := o.metrics.get(name)) is not None]
        if values:
            mean, half = confidence(values)
            rows.append((name, mean, half, len(values)))
    return rows


def _page(scenario: Scenario, outcomes: Sequence[Outcome], figures: Mapping[str, bytes]) -> str:
    def number(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:,.4g}"

    metrics = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{number(mean)}</td><td>± {number(half)}</td><td>{count}</td></tr>"
        for name, mean, half, count in _metric_rows(outcomes)
    )
    names = list(dict.fromkeys(n for o in outcomes for n in o.invariants))
    broken = {n: [o.seed for o in outcomes if not o.invariants.get(n, True)] for n in names}
    invariants = "".join(
        f"<tr class={'bad' if broken[n] else 'good'}><td>{html.escape(n)}</td>"
        f"<td>{'broken with seeds ' + ', '.join(map(str, broken[n])) if broken[n] else 'holds'}</td></tr>"
        for n in names
    )
    runs = "".join(
        f"<tr><td>{o.seed}</td><td>{o.events:,}</td><td>{o.events_per_second:,.0f}</td><td>{o.wall_seconds:.1f} s</td>"
        f"<td><code>{o.trace_hash[:16]}</code></td></tr>"
        for o in outcomes
    )
    images = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in figures.items()
    )
    settings = html.escape(msgspec.json.format(msgspec.json.encode(scenario), indent=2).decode())
    note = (
        "Signatures were replaced by a stand-in; all protocol code is the code that peers run."
        if scenario.signatures == "stand-in"
        else "Signatures were real."
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(scenario.name)} – OWM simulation</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }}
td:nth-child(n+2) {{ font-variant-numeric: tabular-nums; }}
.good td:last-child {{ color: #2a7d3f; }} .bad td:last-child {{ color: #c0392b; font-weight: 600; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} img {{ width: 100%; background: #fff; border-radius: 6px; }}
pre {{ overflow: auto; padding: 1rem; background: #8881; }}
</style></head><body>
<h1>{html.escape(scenario.title or scenario.name)}</h1>
<p>{scenario.nodes:,} nodes, {scenario.duration:,.0f} simulated seconds, {len(outcomes)} seed(s). {note}</p>
<h2>Invariants</h2><table>{invariants or "<tr><td>none asked for</td></tr>"}</table>
<h2>Metrics</h2><table><tr><th>metric</th><th>mean</th><th>95 % confidence</th><th>seeds</th></tr>{metrics}</table>
<h2>Plots</h2><div class="plots">{images}</div>
<h2>Runs</h2><table><tr><th>seed</th><th>events</th><th>events/s</th><th>wall</th><th>trace hash</th></tr>{runs}</table>
<h2>Scenario</h2><pre>{settings}</pre>
</body></html>
"""


def write_report(
    folder: Path, scenario: Scenario, outcomes: Sequence[Outcome], runs: Mapping[int, Measurements]
) -> list[Path]:
    """Write everything into ``folder``; returns the files written.

    Raises:
        UsageError: the ``simulate`` extra is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"reports need {error.name}: install the extra with `pip install 'open-world-model[simulate]'`, or leave "
            "--out away"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcomes.json").write_bytes(msgspec.json.format(msgspec.json.encode(list(outcomes)), indent=2))
    _write_table(folder, "operations", [(seed, o) for seed, m in runs.items() for o in m.operations])
    _write_table(folder, "samples", [(seed, s) for seed, m in runs.items() for s in m.samples])
    figures = plots(runs)
    for name, png in figures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "report.html").write_text(_page(scenario, outcomes, figures), encoding="utf-8")
    return sorted(folder.iterdir())
