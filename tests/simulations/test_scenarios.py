"""Every shipped scenario holds, a broken invariant fails the run, and an impossible scenario says what to change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from owm.errors import ConfigError
from simulations._scenario import load_scenario, shipped_scenarios

SMALL = {"sybil": 300, "eclipse": 280, "gossip-flood": 100, "peers": 32}
SHORT = {"peers": ("--duration", "260")}


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
@pytest.mark.parametrize(
    ("invariant", "value"),
    [("lookup_p99_seconds", "0.0001"), ("delivery_p99_seconds", "0.0001"), ("mean_hops_within_log2", "true")],
)
def test_a_broken_invariant_fails_the_run_and_is_named(tmp_path: Path, invariant: str, value: str) -> None:
    nodes = 2 if invariant == "mean_hops_within_log2" else 60
    broken = tmp_path / "broken.toml"
    broken.write_text(
        f'name = "broken"\nnodes = {nodes}\nduration = 60.0\n[links]\nlatency_ms = 50.0\n'
        f"[workload]\nlookups = 20\nmessages = 10\n[invariants]\n{invariant} = {value}\n"
    )
    done = simulate(str(broken))
    found = json.loads(done.stdout)
    if invariant == "mean_hops_within_log2":
        assert done.returncode == (0 if found["invariants"][invariant] else 1)
    else:
        assert done.returncode == 1
        assert found["invariants"][invariant] is False


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
