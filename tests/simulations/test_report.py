"""Reports: what is drawn, against which axis, and what is left out."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from matplotlib.figure import Figure

from simulations._measure import Measurements, Operation, Sample
from simulations._plots import _hops, over_time, plots
from simulations._report import write_report
from simulations._scenario import load_scenario
from simulations._sweep import run_seed


def publish(at: float, share: float) -> Operation:
    return Operation("publish", at, math.nan, share >= 0.99, 0, 10, share)


def sample(at: float, live: float) -> Sample:
    return Sample(time=at, online=5, table_mean=4.0, table_live_share=live, mesh_mean=2.0, messages=10)


def test_delivery_is_drawn_against_simulated_time() -> None:
    """Half of the messages before 100 s arrive, and all after 200 s: the curve says when."""
    points = [(float(t), 0.5) for t in range(0, 100, 5)] + [(float(t), 1.0) for t in range(200, 300, 5)]
    times, shares = over_time(points, bins=10)
    assert all(share == 0.5 for t, share in zip(times, shares, strict=True) if t < 100)
    assert all(share == 1.0 for t, share in zip(times, shares, strict=True) if t > 200)
    assert min(times) < 30 and max(times) > 265
    assert not any(115 < t < 185 for t in times), "nothing was published then"
    assert over_time([]) == ([], [])


def test_hops_are_whole_numbers_on_their_axis() -> None:
    axes = Figure().add_subplot()
    _hops([1, 1, 2, 4])(axes)
    assert list(axes.get_xticks()) == [0, 1, 2, 3, 4]
    centres = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches]
    assert [round(x, 6) for x in centres] == [0, 1, 2, 3, 4]
    assert [patch.get_height() for patch in axes.patches] == [0, 0.5, 0.25, 0, 0.25]


def test_a_figure_without_data_is_left_out() -> None:
    measured = Measurements()
    measured.samples = [sample(10.0, math.nan), sample(20.0, math.nan)]
    measured.operations = [Operation("query", 5.0, 0.4, True, 0, 0)]
    assert set(plots({1: measured})) == {"latency"}
    measured.samples = [sample(10.0, 0.9), sample(20.0, 1.0)]
    measured.operations += [publish(5.0, 1.0), Operation("get", 5.0, 0.2, True, 2, 6)]
    measured.delivery_times = [0.1]
    measured.shares = [0.5, 1.0]
    assert set(plots({1: measured})) == {"latency", "tables", "delivery", "delays", "hops", "directory"}


def test_a_run_leaves_tables_figures_and_a_page(tmp_path: Path) -> None:
    scenario = load_scenario("baseline", nodes=20, duration=30.0)
    outcome, measured = run_seed(scenario, 1)
    written = {path.name for path in write_report(tmp_path, scenario, [outcome], {1: measured})}
    assert {"report.html", "outcomes.json", "operations.csv", "samples.parquet"} <= written
    assert {"hops.png", "latency.png", "delivery.png", "delays.png", "tables.png"} <= written
    assert "across.png" not in written, "there was no partition"
    with (tmp_path / "operations.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(measured.operations)
