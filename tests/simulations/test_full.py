"""Whole peers in virtual time: they answer, newcomers are useful at once, and a run repeats to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from owm.directory import Directory
from owm.errors import ConfigError
from simulations._scenario import load_scenario
from simulations._sweep import run_seed
from tests.simulations.test_scenarios import outcome

FULL = """
name = "small"
fidelity = "full"
signatures = "real"
nodes = 14
duration = 150.0
[peers]
gateways = 3
late_gateways = 1
[population]
join_interval = 0.2
[workload]
warm_up = 40.0
queries = 40
[links]
latency_ms = 20.0
[churn]
kind = "exponential"
mean_session = 120.0
mean_absence = 20.0
share = 0.5
[invariants]
answered = 0.95
directory = 0.9
gateway_usable_seconds = 5.0
"""


@pytest.mark.slow
def test_whole_peers_answer_through_churn_and_the_run_repeats(tmp_path: Path) -> None:
    scenario = tmp_path / "small.toml"
    scenario.write_text(FULL)
    first = outcome(str(scenario), hash_seed="1")
    assert all(first["invariants"].values()) and len(first["invariants"]) == 3, first["metrics"]
    assert first["signatures"] == "real"
    assert first["metrics"]["query_count"] == 40
    parts = {name for name in first["metrics"] if name.startswith("idle_worker_")}
    assert {"idle_worker_gossip_mb_per_day", "idle_worker_dht_mb_per_day"} <= parts
    again = outcome(str(scenario), hash_seed="2")
    assert again["trace_hash"] == first["trace_hash"]
    other = outcome(str(scenario), seed="2")
    assert other["trace_hash"] != first["trace_hash"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("gateways = 3", "gateways = 14"), "gateway"),
        (("late_gateways = 1", "late_gateways = 3"), "late_gateways"),
        (('signatures = "real"', 'signatures = "stand-in"'), "signatures"),
        (("[workload]", '[adversary]\nkind = "flood"\ncount = 1\n[workload]'), "adversaries"),
    ],
)
def test_what_full_fidelity_cannot_do_is_refused_with_what_to_change(
    tmp_path: Path, change: tuple[str, str], word: str
) -> None:
    scenario = tmp_path / "small.toml"
    scenario.write_text(FULL.replace(*change))
    with pytest.raises(ConfigError, match=word):
        load_scenario(str(scenario))


@pytest.mark.slow
def test_one_late_gateway_that_never_knows_a_worker_breaks_the_invariant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two join late; one is useful at once, the other never: the run has not passed."""
    path = tmp_path / "small.toml"
    text = FULL.replace("late_gateways = 1", "late_gateways = 2").replace("queries = 40", "queries = 0")
    path.write_text(text.replace("duration = 150.0", "duration = 100.0").replace("answered = 0.95\n", ""))
    scenario = load_scenario(str(path))
    both, _ = run_seed(scenario, 1)
    assert both.metrics["late_gateways_usable"] == 2
    assert both.invariants["gateway_usable_seconds"]
    real, blind = Directory.eligible, []

    def eligible(self: Directory, *args: Any, **more: Any) -> Any:
        if not blind and trio.current_time() > 50.0:
            blind.append(self)
        return [] if self in blind else real(self, *args, **more)

    monkeypatch.setattr(Directory, "eligible", eligible)
    one, _ = run_seed(scenario, 1)
    assert one.metrics["late_gateways_usable"] == 1
    assert one.metrics["gateway_usable_max_seconds"] is None
    assert not one.invariants["gateway_usable_seconds"]
