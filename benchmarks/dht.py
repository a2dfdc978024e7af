"""The DHT over real sockets: ours beside py-libp2p's and bmuller's ``kademlia``, and the cores alone.

Each network runs in one process of its own, all peers on loopback; CPU is summed over all of them, less what the same
network used while idle. ``kademlia`` is plain UDP without identities, encryption or signatures: a bound, not a rival.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import trio

from benchmarks._report import Result, main

Figures = dict[str, dict[str, float]]
_IDLE_SECONDS = 3.0
_NETWORK = "benchmark"


class Meter:
    """Times operations and counts their CPU, less the idle CPU of the network."""

    def __init__(self) -> None:
        self.idle = 0.0
        self.figures: Figures = {}

    async def rest(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        await sleep(1.0)
        cpu = time.process_time()
        await sleep(_IDLE_SECONDS)
        self.idle = (time.process_time() - cpu) / _IDLE_SECONDS

    async def measure(
        self, name: str, operations: list[Callable[[], Awaitable[bool]]], sent: Callable[[], int] | None = None
    ) -> None:
        latencies: list[float] = []
        succeeded = 0
        messages = sent() if sent else 0
        cpu, started = time.process_time(), time.perf_counter()
        for operation in operations:
            at = time.perf_counter()
            succeeded += await operation()
            latencies.append(time.perf_counter() - at)
        used = time.process_time() - cpu - self.idle * (time.perf_counter() - started)
        latencies.sort()
        self.figures[name] = {
            "success": succeeded / len(operations),
            "p50": statistics.median(latencies) * 1000,
            "p99": latencies[int(len(latencies) * 0.99)] * 1000,
            "cpu": used / len(operations) * 1000,
            "messages": ((sent() if sent else 0) - messages) / len(operations),
        }


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

        for name, call in (("provide", provide), ("find_providers", providers), ("store", put), ("read", get)):
            await meter.measure(name, [lambda n=n, call=call: call(n) for n in range(operations)], sent)
        await meter.measure("find_peer", [lambda n=n: find(n) for n in range(operations)], sent)
    return meter.figures


async def _bmuller(nodes: int, operations: int) -> Figures:
    from kademlia.network import Server

    meter = Meter()
    servers: list[Any] = []
    for _ in range(nodes):
        server = Server()
        await server.listen(0, interface="127.0.0.1")
        if servers:
            await server.bootstrap([servers[0].transport.get_extra_info("sockname")])
        servers.append(server)
    random = Random(1)
    await meter.rest(asyncio.sleep)

    async def put(n: int) -> bool:
        return bool(await servers[n % nodes].set(f"key {n}", "v" * 200))

    async def get(n: int) -> bool:
        return await random.choice(servers).get(f"key {n}") is not None

    await meter.measure("store", [lambda n=n: put(n) for n in range(operations)])
    await meter.measure("read", [lambda n=n: get(n) for n in range(operations)])
    for server in servers:
        server.stop()
    return meter.figures


async def _library(nodes: int, operations: int) -> Figures:
    from libp2p import new_host
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
    from libp2p.peer.peerinfo import PeerInfo
    from libp2p.records.validator import NamespacedValidator, Validator
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    class Anything(Validator):  # type: ignore[misc]  # the library is untyped
        def validate(self, key: str, value: bytes) -> None:
            return None

        def select(self, key: str, values: list[bytes]) -> int:
            return 0

    meter = Meter()
    async with AsyncExitStack() as stack:
        dhts: list[Any] = []
        hosts: list[Any] = []
        for _ in range(nodes):
            host = new_host()
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            dht = KadDHT(host, DHTMode.SERVER, validator=NamespacedValidator({"owm": Anything()}))
            if hosts:
                await host.connect(PeerInfo(hosts[0].get_id(), hosts[0].get_addrs()))
                await dht.routing_table.add_peer(PeerInfo(hosts[0].get_id(), hosts[0].get_addrs()))
            await stack.enter_async_context(background_trio_service(dht))
            dhts.append(dht)
            hosts.append(host)
        for dht in dhts:
            with trio.move_on_after(10):
                await dht.refresh_routing_table()
        random = Random(1)
        await meter.rest(trio.sleep)

        async def put(n: int) -> bool:
            await dhts[n % nodes].put_value(f"/owm/key{n}", b"v" * 200)
            return True

        async def get(n: int) -> bool:
            dht = random.choice(dhts)
            dht.value_store.remove(f"/owm/key{n}".encode())  # or it answers from its own store, however old
            return await dht.get_value(f"/owm/key{n}") is not None

        await meter.measure("store", [lambda n=n: put(n) for n in range(operations)])
        await meter.measure("read", [lambda n=n: get(n) for n in range(operations)])
        print(json.dumps(meter.figures), flush=True)
        # Leaving takes the library a fifth of a second per connection, one after the other.
        os._exit(0)


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
    "ours": lambda nodes, operations: trio.run(_ours, nodes, operations),
    "bmuller": lambda nodes, operations: asyncio.run(_bmuller(nodes, operations)),
    "py-libp2p": lambda nodes, operations: trio.run(_library, nodes, operations),
    "cores": _cores_alone,
}


def _in_a_process(network: str, nodes: int, operations: int) -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dht", "--network", network, str(nodes), str(operations)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the network {network} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(lines[-1])
    return figures


def run(quick: bool) -> list[Result]:
    """The DHT at 50 nodes (20 with --quick) on loopback: success, latency, CPU and messages of each operation."""
    nodes, operations = (20, 20) if quick else (50, 60)
    ours = _in_a_process("ours", nodes, operations)
    rival = _in_a_process("bmuller", nodes, operations)
    library = _in_a_process("py-libp2p", nodes, 10 if quick else 30)
    cores = _in_a_process("cores", 256 if quick else 1024, 100)
    results: list[Result] = []
    for name, figures in ours.items():
        results.append(Result(f"{name}: success", "", figures["success"], goal=1.0, relation=">="))
        results.extend(Result(f"{name}: {key}", "ms", figures[key]) for key in ("p50", "p99"))
        results.append(Result(f"{name}: messages", "", figures["messages"]))
        results.append(Result(f"{name}: CPU of all nodes", "ms", figures["cpu"]))
    for name in ("store", "read"):
        cpu = ours[name]["cpu"]
        results.append(Result(f"{name}: CPU", "ms", cpu, library[name]["cpu"], "py-libp2p", 1 / 12))
        results.append(Result(f"{name}: p50", "ms", ours[name]["p50"], library[name]["p50"], "py-libp2p"))
        results.append(Result(f"{name}: CPU", "ms", cpu, rival[name]["cpu"], "kademlia (no security)"))
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
