"""The simulator's speed and size: ``python -m benchmarks.simulator``.

Each run is a process of its own, so that its peak memory is its own. An event is one message delivered or one timer
that changed state. Signatures are a stand-in; the cores are those of peers.
"""

from __future__ import annotations

import contextlib
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
    world = World(scenario, 1)
    built = time.perf_counter()
    with rare_collections():
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
    """``baseline`` at 10,000 nodes, lookups alone, and 100,000 nodes of the DHT alone (500 and none with --quick)."""
    nodes = 500 if quick else 10_000
    mixed = _apart(nodes, "mixed")
    lookups = _apart(min(nodes, 2000), "lookups")
    again = _apart(500, "mixed", "1"), _apart(500, "mixed", "2")
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
    with contextlib.suppress(SystemExit):  # there may be no C compiler here
        path = str(compile_cores())
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
    if not quick:
        large = _apart(100_000, "dht")
        results += [
            Result("DHT alone, 100,000 nodes: peak memory", "GB", large["rss"] / 1e9, goal=16.0),
            Result("DHT alone, 100,000 nodes: lookups that succeed", "", large["success"], goal=1.0, relation=">="),
            Result("DHT alone, 100,000 nodes: wall time", "s", large["build"] + large["run"]),
        ]
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(_run(int(sys.argv[2]), sys.argv[3])))
    else:
        main("simulator", run)
