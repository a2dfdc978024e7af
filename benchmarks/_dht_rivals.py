"""Other DHTs, measured as ours is: bmuller's ``kademlia``, py-libp2p's KadDHT, go-libp2p's daemons, and hivemind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from hashlib import sha256
from random import Random
from typing import Any

import psutil
import trio

from benchmarks._meter import Figures, Meter

__all__ = ["bmuller", "go", "hivemind", "library"]


async def bmuller(nodes: int, operations: int) -> Figures:
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


async def library(nodes: int, operations: int) -> Figures:
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


async def go(nodes: int, operations: int) -> Figures:
    """go-libp2p, one daemon a node. Store is ``provide`` and read ``find_providers``: it takes no other keys."""
    from tests.foreign._go import GoPeer

    random = Random(1)
    async with AsyncExitStack() as stack:
        peers: list[GoPeer] = []
        for _ in range(nodes):
            peer = await stack.enter_async_context(GoPeer.running())
            for other in random.sample(peers, min(4, len(peers))):
                await peer.connect(other.peer_id, other.port)
            peers.append(peer)
        for turn in range(2):  # fills the tables
            for number, peer in enumerate(peers):
                await peer.dht("GET_CLOSEST_PEERS", key=sha256(b"%d %d" % (number, turn)).digest())
        processes = [psutil.Process(peer.process.pid) for peer in peers]

        def cpu() -> float:
            return sum(sum(process.cpu_times()[:2]) for process in processes)

        meter = Meter(cpu)
        await meter.rest(trio.sleep)

        def cid(n: int) -> bytes:
            return b"\x01\x55\x12\x20" + sha256(b"key %d" % n).digest()

        async def put(n: int) -> bool:
            await peers[n % nodes].dht("PROVIDE", cid=cid(n))
            return True

        async def get(n: int) -> bool:
            found = await random.choice(peers).dht("FIND_PROVIDERS", cid=cid(n), count=1)
            return len(found) >= 1

        async def find(n: int) -> bool:
            asker, wanted = random.sample(peers, 2)
            return len(await asker.dht("FIND_PEER", peer=bytes(wanted.peer_id))) == 1

        for name, call in (("store", put), ("read", get), ("find_peer", find)):
            await meter.measure(name, [lambda n=n, call=call: call(n) for n in range(operations)])
    return meter.figures


async def hivemind(nodes: int, operations: int) -> Figures:
    """hivemind's DHT: two processes a node, a Python one and go-libp2p's daemon. Its calls block."""
    from hivemind.dht import DHT
    from hivemind.utils.timed_storage import get_dht_time

    random = Random(1)
    peers: list[Any] = []
    for _ in range(nodes):
        first = [str(address) for address in peers[0].get_visible_maddrs()] if peers else []
        peers.append(DHT(start=True, initial_peers=first, host_maddrs=["/ip4/127.0.0.1/tcp/0"]))
    me = psutil.Process()
    processes = me.children(recursive=True)

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    meter = Meter(cpu)
    await meter.rest(asyncio.sleep)

    async def put(n: int) -> bool:
        return bool(peers[n % nodes].store(f"key {n}", b"v" * 200, get_dht_time() + 600))

    async def get(n: int) -> bool:
        return random.choice(peers).get(f"key {n}", latest=True) is not None

    await meter.measure("store", [lambda n=n: put(n) for n in range(operations)])
    await meter.measure("read", [lambda n=n: get(n) for n in range(operations)])
    print(json.dumps(meter.figures), flush=True)
    for process in processes:
        process.kill()
    os._exit(0)


if __name__ == "__main__":  # for an interpreter that has hivemind and not our own dependencies
    asyncio.run(hivemind(*map(int, sys.argv[1:])))
