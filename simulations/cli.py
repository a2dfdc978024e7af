"""``owm simulate``: run scenarios and report what they show."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from owm.compiled import run_compiled
from owm.errors import OwmError
from simulations._measure import Outcome, confidence
from simulations._scenario import Scenario, load_scenario, shipped_scenarios

__all__ = ["simulate"]

EXAMPLES = """
\b
Examples:
  owm simulate --list
  owm simulate baseline --nodes 500 --seed 1
  owm simulate churn --seeds 1..20 --jobs 2 --out out/churn
  owm simulate my-scenario.toml --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("scenario", required=False)
@click.option("--nodes", type=click.IntRange(2, 1_000_000), help="Population, instead of the scenario's.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="Simulated seconds.")
@click.option("--seed", type=int, help="One seed (the default is 1).")
@click.option("--seeds", help="Several seeds, such as 1..20 or 1,5,9.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at once.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--compiled", is_flag=True, help="Run on the cores that `make compile` has compiled: twice as fast.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for tables, plots and report.")
@click.option("--json", "as_json", is_flag=True, help="Print one object (one seed) or a list (several).")
@click.option("--list", "list_only", is_flag=True, help="List the shipped scenarios.")
def simulate(
    scenario: str | None,
    nodes: int | None,
    duration: float | None,
    seed: int | None,
    seeds: str | None,
    jobs: int,
    engine: str,
    compiled: bool,
    out: Path | None,
    as_json: bool,
    list_only: bool,
) -> None:
    """Run SCENARIO, a shipped name or a TOML file, with the protocol cores that peers run.

    Exits with 1 when an invariant of the scenario is broken.
    """
    try:
        if list_only or scenario is None:
            _list(as_json)
            return
        if compiled:
            run_compiled()
        passed = _run(scenario, nodes, duration, seeds or str(1 if seed is None else seed), jobs, engine, out, as_json)
    except OwmError as error:
        click.echo(f"owm simulate: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0 if passed else 1)


def _list(as_json: bool) -> None:
    found = [(name, load_scenario(name)) for name in shipped_scenarios()]
    if as_json:
        click.echo(msgspec.json.encode([{"name": n, "title": s.title, "nodes": s.nodes} for n, s in found]))
        return
    table = Table("scenario", "nodes", "what it shows")
    for name, loaded in found:
        table.add_row(name, f"{loaded.nodes:,}", loaded.title)
    Console().print(table)


def _run(
    name: str,
    nodes: int | None,
    duration: float | None,
    seeds: str,
    jobs: int,
    engine: str,
    out: Path | None,
    as_json: bool,
) -> bool:
    from simulations._report import write_report
    from simulations._sweep import parse_seeds, sweep

    scenario = load_scenario(name, nodes=nodes, duration=duration)
    wanted = parse_seeds(seeds)
    results: dict[int, tuple[Outcome, Any]] = {}
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(f"{scenario.name}, {scenario.nodes:,} nodes", total=len(wanted))

        def advance(share: float) -> None:
            bar.update(task, completed=len(results) + share)

        for outcome, measured in sweep(scenario, wanted, jobs=jobs, engine=engine, progress=advance):
            results[outcome.seed] = (outcome, measured)
            bar.update(task, completed=len(results))
    outcomes = [results[seed][0] for seed in wanted]
    if out is not None:
        write_report(out, scenario, outcomes, {seed: results[seed][1] for seed in wanted})
    if as_json:
        body = outcomes[0] if len(outcomes) == 1 else outcomes
        click.echo(msgspec.json.encode(body))
    else:
        _print(scenario, outcomes, out)
    return all(o.passed for o in outcomes)


def _print(scenario: Scenario, outcomes: list[Outcome], out: Path | None) -> None:
    console = Console()
    events = sum(o.events for o in outcomes)
    rate = events / sum(o.wall_seconds for o in outcomes)
    console.print(
        f"[bold]{scenario.title or scenario.name}[/]: {scenario.nodes:,} nodes, {scenario.duration:,.0f} simulated "
        f"seconds, {len(outcomes)} seed(s), {events:,} events, {rate:,.0f} per second"
    )
    table = Table("metric", "mean", "95 % ±")
    for name in dict.fromkeys(n for o in outcomes for n in o.metrics):
        values = [float(v) for o in outcomes if (v := o.metrics.get(name)) is not None]
        if values:
            mean, half = confidence(values)
            table.add_row(name, f"{mean:,.4g}", "" if math.isnan(half) else f"{half:,.3g}")
    console.print(table)
    for name in dict.fromkeys(n for o in outcomes for n in o.invariants):
        broken = [str(o.seed) for o in outcomes if not o.invariants.get(name, True)]
        console.print(f"[red]broken[/] {name} (seeds {', '.join(broken)})" if broken else f"[green]holds[/]  {name}")
    if len(outcomes) == 1:
        console.print(f"trace hash {outcomes[0].trace_hash}")
    if scenario.signatures == "stand-in":
        console.print("[dim]Signatures are a stand-in; all protocol code is what peers run.[/]")
    if out is not None:
        console.print(f"report: {out / 'report.html'}")
