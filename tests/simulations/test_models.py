"""Links, churn, seeds and statistics of the simulator."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest

from owm.errors import ConfigError
from simulations._churn import Churn, ChurnModel
from simulations._engine import SECOND
from simulations._links import LinkModel, Links, read_matrix
from simulations._measure import confidence, percentile
from simulations._scenario import load_scenario, shipped_scenarios
from simulations._world import World

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


@pytest.mark.parametrize("kind", ["exponential", "weibull"])
def test_the_session_met_at_a_random_time_is_what_renewal_theory_says(kind: str) -> None:
    """Renew sessions and absences for long and look at random times: our draws for the start must be like that."""
    model = ChurnModel(kind=kind, mean_session=100, mean_absence=40, shape=0.5)  # type: ignore[arg-type]
    churn, random = Churn(model, Random(4)), Random(5)
    horizon, now, online = 4_000_000.0, 0.0, True
    looks = sorted(random.uniform(horizon / 10, horizon) for _ in range(20_000))
    met: list[tuple[bool, float]] = []
    while looks:
        end = now + (churn.session() if online else churn.absence())
        while looks and looks[0] < end:
            met.append((online, end - looks.pop(0)))
        now, online = end, not online
    drawn = [(state, churn.first(state)) for state in (churn.starts_online() for _ in range(20_000))]
    for sample in (met, drawn):
        assert abs(sum(state for state, _ in sample) / 20_000 - 100 / 140) < 0.02
    for state in (True, False):
        simulated, ours = (sorted(left for there, left in sample if there is state) for sample in (met, drawn))
        for share in (0.25, 0.5, 0.75, 0.9):
            a, b = (values[int(share * len(values))] for values in (simulated, ours))
            assert abs(a - b) < 0.15 * a, (state, share, a, b)
    # The mean of what is left is E[X^2] / 2 E[X]: a session for the exponential, three for a Weibull of shape one half.
    mean = sum(left for state, left in drawn if state) / sum(state for state, _ in drawn)
    assert abs(mean / 100 - (1.0 if kind == "exponential" else 3.0)) < 0.25


def test_a_run_with_churn_begins_in_the_steady_state() -> None:
    scenario = load_scenario("churn", nodes=400, duration=1.0)
    world = World(scenario, 1)
    # Of the four in five that come and go a quarter is away.
    assert abs(sum(node.online for node in world.nodes) / 400 - 0.8) < 0.05
    known = [contact.id for node in world.nodes if node.dht and node.online for contact in node.dht.table.contacts()]
    online = {node.contact.id for node in world.nodes if node.online}
    assert known and set(known) <= online


def test_a_traced_node_is_there_when_its_trace_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("node,up,down\n1,0,10\n2,5,20\n")
    text = f'name = "t"\nnodes = 6\nduration = 30.0\n[churn]\nkind = "trace"\ntrace = "{path}"\n'
    (tmp_path / "t.toml").write_text(text)
    world = World(load_scenario(str(tmp_path / "t.toml")), 1)
    seen: dict[int, tuple[bool, bool, bool]] = {}
    for at in (1, 7, 15, 25):
        world.heap.at(at * SECOND, lambda at=at: seen.update({at: tuple(n.online for n in world.nodes[1:4])}))
    world.run()
    assert seen == {1: (True, False, True), 7: (True, True, True), 15: (False, True, True), 25: (False, False, True)}


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
