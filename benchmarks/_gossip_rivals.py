"""Others' GossipSub, measured as ours is: go-libp2p's daemons, js-libp2p's peers, py-libp2p's in one process."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any, NoReturn

import psutil
import trio

__all__ = ["Load", "go", "js", "library"]

Load = dict[str, Any]  #: published, latencies (sorted, s), cpu (s), seconds, idle (CPU s a second)
_TOPIC = "news"
_LINKS = 5


def _message() -> bytes:
    return time.monotonic_ns().to_bytes(8, "big") + bytes(292)


def _age(data: bytes) -> float:
    return (time.monotonic_ns() - int.from_bytes(data[:8], "big")) / 1e9


async def _measure(
    publish: Callable[[], Awaitable[None]],
    cpu: Callable[[], float],
    latencies: list[float],
    rate: float,
    seconds: float,
) -> Load:
    await trio.sleep(3)
    used, began = cpu(), time.perf_counter()
    await trio.sleep(3)
    idle = (cpu() - used) / (time.perf_counter() - began)
    latencies.clear()
    used, began, published = cpu(), time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        while published < rate * now:
            await publish()
            published += 1
        await trio.sleep(0.005)
    await trio.sleep(2.5)
    return {
        "published": published,
        "latencies": sorted(latencies),
        "cpu": cpu() - used,
        "seconds": time.perf_counter() - began,
        "idle": idle,
    }


def _of(pids: list[int]) -> Callable[[], float]:
    processes = [psutil.Process(pid) for pid in pids]
    return lambda: sum(sum(process.cpu_times()[:2]) for process in processes)


def _end(load: Load, pids: list[int]) -> NoReturn:
    """Say the result and end this process with those that it started: leaving in order would take minutes."""
    print(json.dumps(load), flush=True)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


async def go(nodes: int, rate: float, seconds: float) -> NoReturn:
    """One daemon a node; what drives them is not counted."""
    from tests.foreign._go import GoPeer

    random, latencies = Random(1), list[float]()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        peers: list[GoPeer] = []

        async def read(channel: Any) -> None:
            async for message in channel:
                latencies.append(_age(message.data))

        for _ in range(nodes):
            peer = await stack.enter_async_context(GoPeer.running())
            for other in random.sample(peers, min(_LINKS, len(peers))):
                await peer.connect(other.peer_id, other.port)
            nursery.start_soon(read, await stack.enter_async_context(peer.subscribe(_TOPIC)))
            peers.append(peer)

        async def publish() -> None:
            await random.choice(peers).publish(_TOPIC, _message())

        load = await _measure(publish, _of([peer.process.pid for peer in peers]), latencies, rate, seconds)
        load["latencies"] = _without_own(load, nodes)
        _end(load, [peer.process.pid for peer in peers])
    raise AssertionError("not reached")


def _without_own(load: Load, nodes: int) -> list[float]:
    """go's daemon and py-libp2p deliver to the publisher too; those come at once and count for nobody."""
    return load["latencies"][max(0, len(load["latencies"]) - load["published"] * (nodes - 1)) :]


async def js(nodes: int, rate: float, seconds: float) -> NoReturn:
    """One Node process a peer."""
    from tests.foreign._js import JsPeer

    random, latencies = Random(1), list[float]()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        peers: list[JsPeer] = []

        async def read(peer: JsPeer) -> None:
            async for message in peer.messages:
                latencies.append(_age(base64.b64decode(message["data"])))

        for _ in range(nodes):
            peer = await stack.enter_async_context(JsPeer.running())
            await peer.do("subscribe", topic=_TOPIC)
            for other in random.sample(peers, min(_LINKS, len(peers))):
                await peer.do("connect", address=other.addresses[0])
            nursery.start_soon(read, peer)
            peers.append(peer)

        async def publish() -> None:
            await random.choice(peers).do("publish", topic=_TOPIC, data=_message())

        pids = [peer._process.pid for peer in peers]
        load = await _measure(publish, _of(pids), latencies, rate, seconds)
        _end(load, pids)
    raise AssertionError("not reached")


async def library(nodes: int, rate: float, seconds: float) -> NoReturn:
    """py-libp2p as it ships, all in this process."""
    from libp2p import new_host
    from libp2p.peer.peerinfo import PeerInfo
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    random, latencies = Random(1), list[float]()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        found: list[tuple[Any, Any]] = []

        async def read(subscription: Any) -> None:
            while True:
                latencies.append(_age((await subscription.get()).data))

        for _ in range(nodes):
            host = new_host()
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            gossip = GossipSub(protocols=["/meshsub/1.0.0"], degree=6, degree_low=4, degree_high=12)
            pubsub = Pubsub(host, gossip)
            await stack.enter_async_context(background_trio_service(pubsub))
            await stack.enter_async_context(background_trio_service(gossip))
            await pubsub.wait_until_ready()
            nursery.start_soon(read, await pubsub.subscribe(_TOPIC))
            for other, _ in random.sample(found, min(_LINKS, len(found))):
                await host.connect(PeerInfo(other.get_id(), other.get_addrs()))
            found.append((host, pubsub))

        async def publish() -> None:
            await random.choice(found)[1].publish(_TOPIC, _message())

        load = await _measure(publish, time.process_time, latencies, rate, seconds)
        load["latencies"] = _without_own(load, nodes)
        _end(load, [])
    raise AssertionError("not reached")
