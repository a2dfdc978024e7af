"""Every shipped scenario holds, a broken invariant fails the run, and an impossible scenario says what to change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from owm.dht._core import KademliaCore
from owm.errors import ConfigError
from simulations._engine import SECOND
from simulations._population import attacked_key
from simulations._scenario import Workload, load_scenario, shipped_scenarios
from simulations._sweep import run_seed
from simulations._world import World

SMALL = {"sybil": 300, "eclipse": 280, "gossip-flood": 100, "peers": 32}
SHORT = {"peers": ("--duration", "500")}  # in the first minutes everybody still relays, and is not idle


def simulate(*arguments: str, seed: str = "1", hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owm", "simulate", *arguments, *(("--seed", seed) if seed else ()), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


def outcome(*arguments: str, **more: str) -> dict[str, Any]:
    done = simulate(*arguments, **more)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_shipped_scenario_holds(name: str) -> None:
    found = outcome(name, "--nodes", str(SMALL.get(name, 120)), *SHORT.get(name, ()))
    assert found["invariants"] and all(found["invariants"].values()), found["metrics"]
    assert found["events"] > 1000 and found["events_per_second"] > 0


@pytest.mark.slow
def test_a_broken_invariant_fails_the_run_and_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(
        'name = "broken"\nnodes = 60\nduration = 60.0\n[links]\nlatency_ms = 50.0\n'
        "[workload]\nlookups = 20\nmessages = 10\n[invariants]\nlookup_success = 1.0\ndelivery_p99_seconds = 0.0001\n"
    )
    done = simulate(str(broken))
    assert done.returncode == 1
    assert json.loads(done.stdout)["invariants"] == {"lookup_success": True, "delivery_p99_seconds": False}


@pytest.mark.slow
def test_one_seed_is_printed_as_one_object() -> None:
    """What programs read: the trace, the speed, the invariants and the metrics."""
    found = outcome("baseline", "--nodes", "60", "--duration", "40")
    assert isinstance(found, dict)
    assert len(found["trace_hash"]) == 64 and int(found["trace_hash"], 16)
    assert found["events"] > 1000 and found["events_per_second"] > 0
    assert set(found["invariants"].values()) == {True}
    assert found["metrics"]["find_peer_success"] == 1.0


@pytest.mark.slow
def test_two_sides_of_a_partition_grow_together_only_by_their_own_efforts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped scenario, smaller: nobody is told of the heal, and without merge probes the sides stay apart."""
    scenario = load_scenario("partition", nodes=60)
    fewer = msgspec.structs.replace(scenario.workload, stores=4000, lookups=1000, messages=30)
    scenario = msgspec.structs.replace(scenario, workload=fewer)
    merged, _ = run_seed(scenario, 1)
    assert merged.passed, merged.invariants
    monkeypatch.setattr(KademliaCore, "start_merge", lambda self, now: None)
    apart, _ = run_seed(scenario, 1)
    held = {name for name, holds in apart.invariants.items() if holds}
    assert held == {"lookup_success", "forgotten", "honest_disconnected"}
    assert apart.metrics["find_peer_across_success"] == 0.0
    assert apart.metrics["merged_seconds"] is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_seven_of_ten_hole_punches_work_and_each_seed_has_its_own_luck(seed: int) -> None:
    scenario = load_scenario("nat", nodes=200, duration=40.0)
    world, other = World(scenario, seed), World(scenario, seed + 10)
    cones = [node for node in world.nodes if node.nat == "cone"]
    pairs = [(a.index, b.index) for i, a in enumerate(cones) for b in cones[:i]]
    luck = [world.can_dial(world.nodes[a], world.nodes[b]) for a, b in pairs]
    assert luck == [world.can_dial(world.nodes[b], world.nodes[a]) for a, b in pairs], "both ends see the same"
    assert abs(sum(luck) / len(luck) - 0.7) < 0.03
    for index in {index for pair in pairs for index in pair}:
        other.nodes[index].nat = "cone"
    again = [other.can_dial(other.nodes[a], other.nodes[b]) for a, b in pairs]
    agreement = sum(x == y for x, y in zip(luck, again, strict=True)) / len(luck)
    assert abs(agreement - (0.7**2 + 0.3**2)) < 0.04, "as two independent draws agree"


@pytest.mark.slow
def test_hole_punches_are_tried_and_counted() -> None:
    found = outcome("nat", "--nodes", "120", "--duration", "60")["metrics"]
    assert found["punch_count"] > 300
    assert 0.62 < found["punch_success"] < 0.78
    assert 0.66 < found["cone_pairs_reachable"] < 0.74
    assert found["punched_links"] > 10


@pytest.mark.slow
def test_a_failed_store_of_the_attacked_key_is_a_failed_read_and_no_other_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = KademliaCore.start_put

    def losing(self: KademliaCore, key: bytes, value: bytes, now: float, **more: Any) -> int:
        """Nobody takes the attacked record."""
        return real(self, key, b"not a record" if key == attacked_key(scenario) else value, now, **more)

    scenario = load_scenario("sybil", nodes=260, duration=80.0)
    monkeypatch.setattr(KademliaCore, "start_put", losing)
    found, _ = run_seed(scenario, 1)
    assert found.metrics["get_success"] > 0.9
    assert found.metrics["get_attacked_success"] == 0.0
    assert not found.invariants["attacked_read_success"]


@pytest.mark.slow
def test_a_message_is_judged_by_those_that_were_there_all_along() -> None:
    """Who leaves before it could have arrived counts neither way; who stays and has nothing counts against it."""
    scenario = load_scenario("baseline", nodes=20, duration=60.0)
    scenario = msgspec.structs.replace(scenario, workload=Workload(messages=1, warm_up=20.0, cool_down=39.0))
    world = World(scenario, 1)
    heap = world.heap
    left, deaf = world.nodes[3], world.nodes[4]
    heap.at(15 * SECOND, lambda: setattr(deaf, "gossip", None))
    for node in world.nodes:
        heap.at(15 * SECOND, node.links.pop, deaf.index, None)
    heap.at(int(21.5 * SECOND), world.leave, left)  # the message went out between 20 and 21 and has reached it
    world.run()
    (published,) = world.measured.of("publish")
    assert published.messages == 17, "of twenty: not its publisher, the one that left, or the deaf one"
    assert abs(published.detail - 17 / 18) < 1e-9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[adversary]\nkind = "sybil"\ncount = 60', "raise|more nodes"),
        ('[adversary]\nkind = "sybil"\ncount = 5\nnear = 9', "adversary.near"),
        ("[population.nat]\ncone = 0.7\nsymmetric = 0.7", "population.nat"),
        ("dht = false\ngossip = false", "neither dht nor gossip"),
        ("color = 1", "unknown field"),
        ("[workload]\nlookups = -1", "lookups"),
        ("duration = -3.0", "duration"),
        ("[[events]]\nat = 1.0\nkind = \"explode\"", "explode"),
        ("nodes = [", "not valid"),
        ("[workload]\nstale_stores = 3", "record_max_age"),
        ("[invariants]\nanswered = 0.9", "does not measure answered"),
    ],
)  # fmt: skip
def test_an_impossible_scenario_says_what_to_change(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text('name = "s"\n' + ("" if "nodes" in text else "nodes = 50\n") + text + "\n")
    with pytest.raises(ConfigError, match=words):
        load_scenario(str(path))


def test_more_attackers_than_nodes_is_an_error_with_an_exit_code() -> None:
    done = simulate("sybil", "--nodes", "150")
    assert done.returncode == 3
    assert "would be attackers" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_scenario_lists_those_that_there_are() -> None:
    done = simulate("no-such-thing")
    assert done.returncode == 3
    assert all(name in done.stderr for name in shipped_scenarios())


@pytest.mark.slow
def test_one_seed_gives_one_trace_in_any_process_and_another_seed_another() -> None:
    small = ("baseline", "--nodes", "80", "--duration", "60")
    one, two, three = (outcome(*small, hash_seed=hash_seed) for hash_seed in ("0", "1", "4242"))
    assert one["trace_hash"] == two["trace_hash"] == three["trace_hash"]
    for found in (one, two):
        del found["metrics"]["setup_seconds"]  # the one figure of the machine
    assert one["metrics"] == two["metrics"]
    assert outcome(*small, seed="2")["trace_hash"] != one["trace_hash"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "import owm.dht._core_types as t; t.DhtParams.__init__.__kwdefaults__ and None; "
        "d = t.DhtParams.__init__.__defaults__; n = list(t.DhtParams.__dataclass_fields__); "
        "t.DhtParams.__init__.__defaults__ = tuple(2 if f == 'alpha' else v for f, v in zip(n, d))",
        "import owm.gossip._core_params as t; "
        "d = t.GossipParams.__init__.__defaults__; n = list(t.GossipParams.__dataclass_fields__); "
        "t.GossipParams.__init__.__defaults__ = tuple(2 if f == 'd_lazy' else v for f, v in zip(n, d))",
    ],
    ids=["alpha of the DHT", "D_lazy of gossip"],
)
def test_the_cores_that_run_are_those_of_peers(change: str) -> None:
    """Altering a core's constant alters the trace."""
    program = (
        "{change}\n"
        "from simulations._scenario import load_scenario\nfrom simulations._world import World\n"
        "w = World(load_scenario('baseline', nodes=60, duration=40.0), 1)\nw.run()\nprint(w.heap.trace_hash)\n"
    )
    hashes = [
        subprocess.run(
            [sys.executable, "-c", program.format(change=text)], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for text in ("pass", change)
    ]
    assert len(hashes[0].strip()) == 64 and hashes[0] != hashes[1]


@pytest.mark.slow
def test_several_seeds_run_side_by_side_and_are_reported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ("baseline", "--nodes", "60", "--duration", "40", "--seeds", "1..3", "--jobs", "2", "--out", str(out))
    done = simulate(*small, seed="")
    found = json.loads(done.stdout)
    assert [one["seed"] for one in found] == [1, 2, 3]
    assert len({one["trace_hash"] for one in found}) == 3
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page and 'href="http' not in page and "<script src" not in page
    assert page.count("data:image/") >= 3, "the plots are inside"
    for one in found:
        assert one["trace_hash"][:8] in page
    assert list(out.glob("*.parquet")) and list(out.glob("*.csv"))
    import csv

    table = next(path for path in out.glob("*.csv") if "operation" in path.name)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lookups = [row for row in rows if row["kind"] == "find_peer"]
    wanted = sum(one["metrics"]["find_peer_count"] for one in found) if "find_peer_count" in found[0]["metrics"] else 0
    assert len(lookups) == wanted or not wanted
    assert lookups


@pytest.mark.slow
def test_a_graph_of_ones_own_is_used(tmp_path: Path) -> None:
    ring = tmp_path / "ring.csv"
    ring.write_text("a,b\n" + "".join(f"{n},{(n + 1) % 30}\n" for n in range(30)))
    scenario = tmp_path / "ring.toml"
    scenario.write_text(
        'name = "ring"\nnodes = 30\nduration = 60.0\ndht = false\n[workload]\nmessages = 10\n'
        f'[population]\ngraph = "{ring}"\n[invariants]\ndelivery = 1.0\n'
    )
    found = outcome(str(scenario))
    full = outcome("baseline", "--nodes", "30", "--duration", "60")
    assert found["invariants"] == {"delivery": True}
    assert found["metrics"]["delivery_p99_seconds"] > 3 * full["metrics"]["delivery_p99_seconds"]
