"""The DHT over real sockets: ours beside go-libp2p's, py-libp2p's, hivemind's and bmuller's, and the cores alone.

Each network runs in one process of its own, all peers on loopback; CPU is summed over all of them, less what the same
network used while idle. ``kademlia`` is plain UDP without identities, encryption or signatures: a bound, not a rival.
hivemind takes part where it is installed, with torch (``pip install torch==2.13.0 hivemind``); ``OWM_HIVEMIND_PYTHON``
names another interpreter that has it, psutil and trio.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import trio

from benchmarks import _dht_processes, _dht_rivals
from benchmarks._meter import Figures, Meter
from benchmarks._report import Result, main

_NETWORK = "benchmark"


async def _settled(nodes: int, operations: int) -> Figures:
    from owm.peer import settle_memory

    settle_memory()  # as a peer does
    return await _ours(nodes, operations)


async def _ours(nodes: int, operations: int) -> Figures:
    from owm.clock import SystemClock
    from owm.dht import DhtParams, KademliaDht
    from owm.identity import Identity
    from owm.net import NetworkLimits
    from owm.net.libp2p import Libp2pNetwork
    from owm.records import LogHead, sign_record

    meter = Meter()
    async with AsyncExitStack() as stack:
        peers: list[tuple[Identity, KademliaDht]] = []
        first: Libp2pNetwork | None = None
        for number in range(nodes):
            identity = Identity.generate()
            limits = NetworkLimits(exempt_local=True)
            network = Libp2pNetwork(identity, listen=["/ip4/127.0.0.1/tcp/0"], limits=limits)
            await stack.enter_async_context(network.running())
            dht = KademliaDht(
                network,
                network_id=_NETWORK,
                clock=SystemClock(),
                random=Random(number),
                params=DhtParams(dial_back_groups=0),
                devnet=True,
                idle=600.0,  # as the others: connections stay up
                keep=nodes,
                crowd=nodes,
                in_region=lambda key: b"region" in key,
            )
            await stack.enter_async_context(dht.running())
            if first is None:
                first = network
            else:
                await network.connect(first.peer_id, first.addresses)
                await dht.bootstrap()
            peers.append((identity, dht))
        random = Random(1)
        for _, dht in peers:  # a first round fills tables and opens connections
            await dht.bootstrap()
        for turn in range(4):
            for number, (_, dht) in enumerate(peers):
                await dht.provide(b"warm %d %d" % (number, turn))
        await meter.rest(trio.sleep)

        def reader() -> KademliaDht:
            return random.choice(peers)[1]

        owners = [peers[n % nodes] for n in range(operations)]
        records = [
            sign_record(identity, LogHead(sequence=int(time.time() * 1000) + n, size=n, root=b"r" * 32), _NETWORK)
            for n, (identity, _) in enumerate(owners)
        ]

        def sent() -> int:
            return sum(dht.statistics().queries_sent for _, dht in peers)

        async def provide(n: int) -> bool:
            return await owners[n][1].provide(b"key %d" % n) > 0

        async def providers(n: int) -> bool:
            return len(await reader().find_providers(b"key %d" % n)) == 1

        async def put(n: int) -> bool:
            return await owners[n][1].put(records[n]) > 0

        async def get(n: int) -> bool:
            return await reader().get(records[n].dht_key) is not None

        async def find(n: int) -> bool:
            return await reader().find_peer(owners[n][0].peer_id) is not None

        async def region_put(n: int) -> bool:
            return await owners[n][1].provide(b"region %d" % n) > 0

        async def region_get(n: int) -> bool:
            return len(await reader().find_providers(b"region %d" % n)) == 1

        for name, call in (
            ("provide", provide),
            ("find_providers", providers),
            ("store", put),
            ("read", get),
            ("region store", region_put),
            ("region read", region_get),
        ):
            await meter.measure(name, [lambda n=n, call=call: call(n) for n in range(operations)], sent)
        await meter.measure("find_peer", [lambda n=n: find(n) for n in range(operations)], sent)
    return meter.figures


def _cores_alone(nodes: int, operations: int) -> Figures:
    """The cores on an event heap, messages handed over as objects: what the core itself costs."""
    from owm.dht._core import KademliaCore
    from owm.dht._core_types import Contact, DhtParams, Done, SendQuery, Validity

    random = Random(1)
    params = DhtParams(dial_back_groups=0)
    cores: dict[bytes, KademliaCore] = {}
    for number in range(nodes):
        contact = Contact(b"peer-%06d" % number, (f"/ip4/10.{number >> 8}.{number & 255}.1/tcp/1",))
        cores[contact.id] = KademliaCore(contact, params, Random(number), lambda key, value: Validity(1))
    everybody = [core.contact for core in cores.values()]
    for core in cores.values():
        for other in random.sample(everybody, min(300, nodes)):
            core.table.heard(other, 0.0)
        for other in sorted(everybody, key=lambda c, key=core.contact.key: c.key ^ key)[1:21]:
            core.table.heard(other, 0.0)
    now = 0.0
    heap: list[tuple[float, int, KademliaCore, SendQuery]] = []

    def run(core: KademliaCore, operation: int) -> Any:
        nonlocal now
        order = 0
        pending = [core]
        while True:
            for active in pending:
                for effect in active.drain():
                    if isinstance(effect, Done) and effect.operation == operation:
                        return effect.result
                    if isinstance(effect, SendQuery):
                        order += 1
                        heapq.heappush(heap, (now + 0.05, order, active, effect))
            now, _, asker, query = heapq.heappop(heap)
            target = cores[query.contact.id]
            answer = target.receive_query(asker.contact.id, query.message, now)
            asker.receive_response(query.query_id, answer, now)
            pending = [asker, target]

    names = random.choices(list(cores), k=operations)
    figures: Figures = {}
    for name in ("store", "read"):
        cpu = time.process_time()
        done = 0
        for n, peer in enumerate(names):
            core = cores[peer]
            if name == "store":
                done += run(core, core.start_put(b"/owm/%d" % n, b"v" * 200, now, own=False)).stored > 0
            else:
                done += run(core, core.start_get(b"/owm/%d" % n, now)).value is not None
            heap.clear()
        figures[name] = {"success": done / operations, "cpu": (time.process_time() - cpu) / operations * 1000}
    return figures


_NETWORKS: dict[str, Callable[[int, int], Figures]] = {
    "ours": lambda nodes, operations: trio.run(_settled, nodes, operations),
    "apart": lambda nodes, operations: trio.run(_dht_processes.network, nodes, operations),
    "go-libp2p": lambda nodes, operations: trio.run(_dht_rivals.go, nodes, operations),
    "bmuller": lambda nodes, operations: asyncio.run(_dht_rivals.bmuller(nodes, operations)),
    "py-libp2p": lambda nodes, operations: trio.run(_dht_rivals.library, nodes, operations),
    "cores": _cores_alone,
}


def _python_with_hivemind() -> str | None:
    python = os.environ.get("OWM_HIVEMIND_PYTHON", sys.executable)
    code = "import importlib.util as u, sys; sys.exit(not (u.find_spec('hivemind') and u.find_spec('torch')))"
    return python if subprocess.run([python, "-c", code], check=False).returncode == 0 else None


def _in_a_process(network: str, nodes: int, operations: int) -> Figures:
    return _figures(
        network, [sys.executable, "-m", "benchmarks.dht", "--network", network, str(nodes), str(operations)]
    )


def _figures(network: str, command: list[str]) -> Figures:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the network {network} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(lines[-1])
    return figures


def run(quick: bool) -> list[Result]:
    """The DHT at 50 nodes (20 with --quick) on loopback: success, latency, CPU and messages of each operation."""
    nodes, operations = (20, 20) if quick else (50, 60)
    ours = _in_a_process("ours", nodes, operations)
    apart = _in_a_process("apart", 20, 20 if quick else 60)
    go = _in_a_process("go-libp2p", nodes, operations)
    rival = _in_a_process("bmuller", nodes, operations)
    library = _in_a_process("py-libp2p", nodes, 10 if quick else 30)
    hivemind: Figures | None = None
    if not quick and (python := _python_with_hivemind()):
        hivemind = _figures("hivemind", [python, "-m", "benchmarks._dht_rivals", str(nodes), str(operations)])
    cores = _in_a_process("cores", 256 if quick else 1024, 100)
    results: list[Result] = []
    for name, figures in ours.items():
        results.append(Result(f"{name}: success", "", figures["success"], goal=1.0, relation=">="))
        results.extend(Result(f"{name}: {key}", "ms", figures[key]) for key in ("p50", "p99"))
        results.append(Result(f"{name}: messages", "", figures["messages"]))
        results.append(Result(f"{name}: CPU of all nodes", "ms", figures["cpu"]))
    for name, goal in (("store", 0.3), ("read", 0.85)):
        same = "provide" if name == "store" else "find_providers"  # go's daemon stores nothing else
        cpu, p50 = ours[same]["cpu"], ours[same]["p50"]
        results.append(Result(f"{same}: CPU", "ms", cpu, go[name]["cpu"], "go-libp2p", goal))
        results.append(Result(f"{same}: p50", "ms", p50, go[name]["p50"], "go-libp2p"))
    for name, figures in apart.items():
        title = f"20 processes, {name}"
        results.append(Result(f"{title}: success", "", figures["success"], goal=1.0, relation=">="))
        stopped = "stopped" in name
        results.append(Result(f"{title}: p99", "ms", figures["p99"], goal=3000.0 if stopped else None))
        if not stopped:
            results.append(Result(f"{title}: CPU of all nodes", "ms", figures["cpu"]))
    for name in ("store", "read"):
        cpu = ours[name]["cpu"]
        results.append(Result(f"{name}: CPU", "ms", cpu, library[name]["cpu"], "py-libp2p", 1 / 12))
        results.append(Result(f"{name}: p50", "ms", ours[name]["p50"], library[name]["p50"], "py-libp2p"))
        results.append(Result(f"{name}: CPU", "ms", cpu, rival[name]["cpu"], "kademlia (no security)"))
        if hivemind is not None:
            results.append(Result(f"{name}: CPU", "ms", cpu, hivemind[name]["cpu"], "hivemind"))
            results.append(Result(f"{name}: p50", "ms", ours[name]["p50"], hivemind[name]["p50"], "hivemind"))
        bound = 10.0 if name == "store" else 4.0
        results.append(Result(f"{name}: core alone, a bound", "ms", cores[name]["cpu"], goal=bound))
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--network"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--network", nargs=3)
        chosen, size, count = parser.parse_args().network
        print(json.dumps(_NETWORKS[chosen](int(size), int(count))))
    else:
        main("dht", run)
