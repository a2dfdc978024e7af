"""A number of our gossiping peers in one process: ``python -m benchmarks._gossip_nodes COUNT FIRST``.

Prints their addresses as a JSON line; then takes JSON commands on stdin: ``["join", [addresses]]``, ``["idle"]`` and
``["run", rate, seconds, nodes]``, and answers each with a line. Records carry the time of their publication.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import structlog
import trio

from owm.clock import SystemClock
from owm.gossip import GossipParams, GossipService, Received, ScoreParams
from owm.identity import Identity
from owm.net import NetworkLimits
from owm.net.libp2p import Libp2pNetwork
from owm.peer import settle_memory
from owm.records import LogHead, sign_record

_NETWORK = "0123456789abcdef0123456789abcdef"
_TOPIC = "/owm/benchmark/news"
_LINKS = 5
_PADDING = 94  # makes a record of 300 bytes


class _Peer:
    def __init__(self, number: int) -> None:
        self.identity = Identity(Random(number).randbytes(32))
        self.network = Libp2pNetwork(
            self.identity, listen=["/ip4/127.0.0.1/tcp/0"], limits=NetworkLimits(exempt_local=True)
        )
        self.gossip = GossipService(
            self.network,
            network_id=_NETWORK,
            clock=SystemClock(),
            random=Random(number),
            params=GossipParams(score=ScoreParams(colocation_weight=0.0)),
        )
        self.sequence = time.time_ns() // 1_000_000
        self.latencies: list[float] = []
        self.size = 0

    async def read(self, channel: trio.MemoryReceiveChannel[Received]) -> None:
        async for received in channel:
            head: Any = received.record.record
            self.latencies.append((time.monotonic_ns() - head.size) / 1e9)

    async def publish(self) -> None:
        self.sequence += 1
        head = LogHead(sequence=self.sequence, size=time.monotonic_ns(), root=bytes(_PADDING))
        record = sign_record(self.identity, head, _NETWORK)
        self.size = len(record.envelope)
        await self.gossip.publish(_TOPIC, record)


async def _serve(count: int, first: int) -> None:
    peers = [_Peer(first + number) for number in range(count)]
    random = Random(first)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for peer in peers:
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
            nursery.start_soon(peer.read, peer.gossip.subscribe(_TOPIC))
        _say([peer.network.addresses[0] for peer in peers])

        async def join(addresses: list[str]) -> str:
            for peer in peers:
                for address in random.sample(addresses, _LINKS):
                    if address not in peer.network.addresses:
                        await peer.network.connect(None, [address])
            return "joined"

        async def idle() -> float:
            cpu, began = time.process_time(), time.perf_counter()
            await trio.sleep(3)
            return (time.process_time() - cpu) / (time.perf_counter() - began)

        async def load(rate: float, seconds: float) -> dict[str, Any]:
            before = [(p.gossip.opened, p.gossip.statistics().duplicates) for p in peers]
            cpu, began = time.process_time(), time.perf_counter()
            published = 0
            while (now := time.perf_counter() - began) < seconds:
                while published < rate * now:
                    await random.choice(peers).publish()
                    published += 1
                await trio.sleep(0.005)
            await trio.sleep(2.5)
            after = [(p.gossip.opened, p.gossip.statistics().duplicates) for p in peers]
            latencies = sorted(latency for peer in peers for latency in peer.latencies)
            for peer in peers:  # here and not before: the other process may publish before we are told to
                peer.latencies.clear()
            return {
                "published": published,
                "latencies": latencies,
                "cpu": time.process_time() - cpu,
                "seconds": time.perf_counter() - began,
                "opened": sum(b[0] - a[0] for a, b in zip(before, after, strict=True)),
                "duplicates": sum(b[1] - a[1] for a, b in zip(before, after, strict=True)),
                "bytes": max(peer.size for peer in peers),
            }

        actions = {"join": join, "idle": idle, "run": load}
        buffer = b""
        async for chunk in trio.lowlevel.FdStream(os.dup(0)):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                name, *arguments = json.loads(line)
                _say(await actions[name](*arguments))  # type: ignore[operator]
        nursery.cancel_scope.cancel()


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    settle_memory()
    trio.run(_serve, int(sys.argv[1]), int(sys.argv[2]))
