"""The simulator's speed and size: ``python -m benchmarks.simulator``.

Each run is a process of its own, so that its peak memory is its own. An event is one message delivered or one timer
that changed state. Signatures are a stand-in, but in the runs of whole peers; the cores are those of peers.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from typing import Any

import msgspec

from benchmarks._report import Result, main
from owm.compiled import compiled_folder
from scripts.compile_cores import compile_cores


def _run(nodes: int, kind: str) -> dict[str, Any]:
    """One run in this process."""
    from owm.compiled import is_compiled
    from simulations._scenario import Workload, load_scenario
    from simulations._sweep import rare_collections
    from simulations._world import World

    scenario = load_scenario("baseline", nodes=nodes)
    mixed = Workload(lookups=nodes, messages=100, stores=50, reads=50)
    workload = {"mixed": mixed, "lookups": Workload(lookups=max(nodes, 5000)), "dht": Workload(lookups=1000)}[kind]
    scenario = msgspec.structs.replace(scenario, workload=workload, gossip=kind == "mixed")
    began = time.perf_counter()
    with rare_collections():
        world = World(scenario, 1)
        built = time.perf_counter()
        world.run()
    ended = time.perf_counter()
    lookups = [o for o in world.measured.operations if o.kind == "find_peer"]
    deliveries = [o for o in world.measured.operations if o.kind == "publish"]
    return {
        "build": built - began,
        "run": ended - built,
        "events": world.heap.events,
        "hash": world.heap.trace_hash,
        "compiled": is_compiled(),
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "success": sum(o.success for o in lookups) / max(1, len(lookups)),
        "hops": sum(o.hops for o in lookups) / max(1, len(lookups)),
        "delivery": sum(o.success for o in deliveries) / len(deliveries) if deliveries else None,
    }


def _run_peers(nodes: int, kind: str) -> dict[str, Any]:
    """Whole peers in this process: churn for 20 minutes, or a large calm network that two gateways join late."""
    from simulations._churn import ChurnModel
    from simulations._scenario import Peers, load_scenario
    from simulations._sweep import run_seed

    scenario = msgspec.structs.replace(load_scenario("peers"), nodes=nodes)
    if kind == "peers-quick":
        scenario = msgspec.structs.replace(
            scenario,
            duration=90.0,
            peers=Peers(gateways=3, late_gateways=1),
            workload=msgspec.structs.replace(scenario.workload, warm_up=30.0, queries=20),
        )
    elif kind == "peers-large":
        scenario = msgspec.structs.replace(
            scenario,
            duration=600.0,
            peers=Peers(gateways=4, late_gateways=2),
            population=msgspec.structs.replace(scenario.population, join_interval=0.2),
            workload=msgspec.structs.replace(scenario.workload, warm_up=300.0, queries=50),
            churn=ChurnModel(),
        )
    before = time.process_time()
    outcome, _ = run_seed(scenario, 1)
    found = {name: value for name, value in outcome.metrics.items() if name.startswith("idle_worker_")}
    return {
        **found,
        "wall": outcome.wall_seconds,
        "cpu": time.process_time() - before,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answered": outcome.metrics.get("query_success"),
        "directory": outcome.metrics.get("directory_share"),
        "usable": outcome.metrics.get("gateway_usable_max_seconds"),
    }


def _compiled(quick: bool) -> str:
    """The folder of compiled cores; empty where there is no compiler, or no time to use it."""
    if quick and not compiled_folder().exists():
        return ""
    try:
        return str(compile_cores())
    except SystemExit:
        return ""


def _churn(quick: bool) -> list[Result]:
    """500 whole peers through 20 minutes of churn (20 for a moment with --quick)."""
    if quick:
        few = _apart(20, "peers-quick")
        return [Result("whole peers, 20 for 90 s: questions answered", "", few["answered"], goal=0.98, relation=">=")]
    path = _compiled(quick)
    return _churn_rows(_apart(500, "peers-churn", path=path), compiled=bool(path))


def _churn_rows(churn: dict[str, Any], *, compiled: bool) -> list[Result]:
    name = f"whole peers, 500 of them 20 gateways, 20 minutes of churn{', compiled cores' * compiled}"
    never = math.inf if churn["usable"] is None else churn["usable"]
    return [
        Result(f"{name}: wall time", "s", churn["wall"], goal=600.0),
        Result(f"{name}: CPU time", "s", churn["cpu"]),
        Result(f"{name}: questions answered", "", churn["answered"], goal=0.98, relation=">="),
        Result(f"{name}: workers that gateways know", "", churn["directory"], goal=0.95, relation=">="),
        Result(f"{name}: until a gateway that joins late knows a worker for a task", "s", never, goal=5.0),
        *_traffic_rows(name, churn),
    ]


def _idle(quick: bool) -> list[Result]:
    """1,000 whole peers that idle while two gateways join; nothing with --quick."""
    if quick:
        return []
    path = _compiled(quick)
    large = _apart(1000, "peers-large", path=path)
    name = f"whole peers, 1,000, from the fifth to the tenth minute{', compiled cores' if path else ''}"
    never = math.inf if large["usable"] is None else large["usable"]
    return [
        *_traffic_rows(name, large),
        Result(f"{name}: workers that gateways know", "", large["directory"], goal=0.95, relation=">="),
        Result(f"{name}: until a gateway that joins late knows a worker for a task", "s", never, goal=5.0),
        Result(f"{name}: wall time", "s", large["wall"]),
        Result(f"{name}: CPU time", "s", large["cpu"]),
        Result(f"{name}: peak memory", "GB", large["rss"] / 1e9),
    ]


def _traffic_rows(name: str, found: dict[str, Any]) -> list[Result]:
    """What an idle worker sends and receives in a day, with its parts."""
    parts = sorted(set(found) - {f"idle_worker_{word}mb_per_day" for word in ("", "median_", "max_", "tasks_")})
    return [
        Result(f"{name}: an idle worker's traffic, both ways", "MB/day", found["idle_worker_mb_per_day"], goal=100.0),
        Result(f"{name}: the median worker's", "MB/day", found["idle_worker_median_mb_per_day"]),
        Result(f"{name}: the busiest relay's", "MB/day", found["idle_worker_max_mb_per_day"]),
        *(
            Result(f"{name}: of the mean {part.split('_')[2]}", "MB/day", found[part])
            for part in parts
            if part.startswith("idle_worker_")
        ),
        Result(f"{name}: a worker's tasks, beside that", "MB/day", found.get("idle_worker_tasks_mb_per_day", 0.0)),
    ]


def _apart(nodes: int, kind: str, hash_seed: str = "0", path: str = "") -> dict[str, Any]:
    environ = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(filter(None, [path, os.getcwd()])),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.simulator", "--run", str(nodes), kind],
        capture_output=True, text=True, check=False, env=environ,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the run of {nodes} nodes failed: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(quick: bool) -> list[Result]:
    """``baseline`` at 10,000 nodes, lookups alone, 100,000 nodes of the DHT alone, whole peers (few with --quick)."""
    return [*_cores(quick), *_large(quick), *_churn(quick), *_idle(quick)]


def _cores(quick: bool) -> list[Result]:
    nodes = 200 if quick else 10_000
    mixed = _apart(nodes, "mixed")
    lookups = _apart(min(nodes, 2000), "lookups")
    again = [_apart(60 if quick else 500, "mixed", hash_seed) for hash_seed in ("1", "2")]
    name = f"baseline, {nodes:,} nodes, 300 s"
    results = [
        Result(f"{name}: wall time, set-up included", "s", mixed["build"] + mixed["run"], goal=300.0),
        Result(f"{name}: peak memory", "GB", mixed["rss"] / 1e9, goal=4.0),
        Result(f"{name}: events, mixed", "events/s", mixed["events"] / mixed["run"], goal=50_000, relation=">="),
        Result(f"{name}: lookups that succeed", "", mixed["success"], goal=1.0, relation=">="),
        Result(f"{name}: messages that reach everybody", "", mixed["delivery"], goal=1.0, relation=">="),
        Result(f"{name}: mean hops", "", mixed["hops"], math.log2(nodes), "log2(n)", 1.0),
        Result("lookups alone", "events/s", lookups["events"] / lookups["run"], goal=25_000, relation=">="),
        Result("trace hashes of one seed that differ", "", float(again[0]["hash"] != again[1]["hash"]), goal=0.0),
    ]
    path = _compiled(quick)
    if path:
        fast = _apart(min(nodes, 2000), "mixed", path=path)
        fast_lookups = _apart(min(nodes, 2000), "lookups", path=path)
        slow = _apart(min(nodes, 2000), "mixed")
        if not fast["compiled"] or fast["hash"] != slow["hash"]:
            raise RuntimeError("the compiled cores do not do what the sources do")
        rate, plain = (found["events"] / found["run"] for found in (fast_lookups, lookups))
        results += [
            Result("compiled cores: events, mixed", "events/s", fast["events"] / fast["run"], goal=2e5, relation=">="),
            Result("compiled cores: wall time, mixed", "s", fast["run"], slow["run"], "plain Python"),
            Result("compiled cores: lookups alone", "events/s", rate, plain, "plain Python"),
        ]
    return results


def _large(quick: bool) -> list[Result]:
    if quick:
        return []
    large = _apart(100_000, "dht")
    return [
        Result("DHT alone, 100,000 nodes: peak memory", "GB", large["rss"] / 1e9, goal=16.0),
        Result("DHT alone, 100,000 nodes: lookups that succeed", "", large["success"], goal=1.0, relation=">="),
        Result("DHT alone, 100,000 nodes: wall time", "s", large["build"] + large["run"]),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        measure = _run_peers if sys.argv[3].startswith("peers-") else _run
        print(json.dumps(measure(int(sys.argv[2]), sys.argv[3])))
    else:
        main("simulator", run, parts={"cores": _cores, "large": _large, "churn": _churn, "idle": _idle})
