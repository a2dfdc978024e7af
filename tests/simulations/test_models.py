"""Links, churn, seeds and statistics of the simulator."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest

from owm.errors import ConfigError
from simulations._churn import Churn, ChurnModel
from simulations._links import LinkModel, Links, read_matrix
from simulations._measure import confidence, percentile
from simulations._scenario import load_scenario, shipped_scenarios

SCENARIOS = [
    "baseline",
    "bootstrap-death",
    "churn",
    "clock-skew",
    "eclipse",
    "gossip-flood",
    "join",
    "nat",
    "partition",
    "peers",
    "regions",
    "sybil",
]


def test_every_named_scenario_ships_and_states_invariants() -> None:
    assert shipped_scenarios() == SCENARIOS
    for name in SCENARIOS:
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.title
        asked = scenario.invariants
        assert any(
            value is not None and value is not False
            for value in (getattr(asked, field) for field in asked.__struct_fields__)
        )


def test_an_unknown_scenario_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="baseline, bootstrap-death"):
        load_scenario("no-such-thing")


def test_a_misspelt_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nnode = 3\n')
    with pytest.raises(ConfigError, match="node"):
        load_scenario(str(path))


def test_overrides_are_checked_like_the_file() -> None:
    assert load_scenario("baseline", nodes=50, duration=20.0).nodes == 50
    with pytest.raises(ConfigError):
        load_scenario("baseline", nodes=1)


def test_latency_has_the_stated_mean_and_spread() -> None:
    links = Links(LinkModel(latency_ms=40, jitter=0.2), Random(1))
    drawn = [links.delay(0, 1) for _ in range(20_000)]
    mean = sum(drawn) / len(drawn)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in drawn) / len(drawn))
    assert abs(mean - 40_000) < 300
    assert abs(deviation - 8_000) < 200
    assert min(drawn) > 0


def test_a_partition_cuts_both_ways_and_a_one_way_partition_only_one() -> None:
    links = Links(LinkModel(), Random(1))
    links.partition([0, 1])
    assert links.delay(0, 1) > 0
    assert links.delay(0, 2) == links.delay(2, 0) == -1
    links.partition([0, 1], one_way=True)
    assert links.delay(0, 2) == -1
    assert links.delay(2, 0) > 0
    links.heal()
    assert links.delay(0, 2) > 0


def test_lost_messages_arrive_late_never_never() -> None:
    links = Links(LinkModel(latency_ms=10, jitter=0, loss=0.3, retransmit_ms=200), Random(2))
    drawn = [links.delay(0, 1) for _ in range(5000)]
    assert set(drawn) == {10_000, 210_000}
    assert 0.27 < drawn.count(210_000) / 5000 < 0.33


def test_regions_use_the_table_and_a_matrix_of_ones_own(tmp_path: Path) -> None:
    links = Links(LinkModel(jitter=0, regions={"eu": 0.5, "asia": 0.5}), Random(1), ["eu", "asia"])
    assert links.delay(0, 1) == 95_000
    path = tmp_path / "matrix.csv"
    path.write_text(",a,b\na,1,7\nb,9,2\n")
    assert read_matrix(path)["b"]["a"] == 9
    own = Links(LinkModel(jitter=0, regions={"a": 1}, matrix=str(path)), Random(1), ["a", "b"])
    assert (own.delay(0, 1), own.delay(1, 0)) == (7_000, 9_000)
    path.write_text(",a,b\na,1,7\n")
    with pytest.raises(ValueError, match="same regions"):
        read_matrix(path)


def test_weibull_sessions_have_the_stated_mean_and_a_heavy_tail() -> None:
    churn = Churn(ChurnModel(kind="weibull", mean_session=100, shape=0.5), Random(3))
    drawn = [churn.session() for _ in range(50_000)]
    assert abs(sum(drawn) / len(drawn) - 100) < 5
    assert sorted(drawn)[len(drawn) // 2] < 30  # the median of shape 0.5 is a quarter of the mean


def test_a_trace_gives_each_node_its_sessions(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("node,up,down\n1,0,10\n1,20,30\n2,5,6\n")
    churn = Churn(ChurnModel(kind="trace", trace=str(path)), Random(1))
    assert churn.schedule(1) == [(0, 10), (20, 30)]
    assert churn.schedule(3) == []


def test_percentiles_and_confidence_intervals_are_the_textbook_ones() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99
    mean, half = confidence([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert abs(half - 4.30 / math.sqrt(3)) < 1e-9
    assert math.isnan(confidence([5.0])[1])
