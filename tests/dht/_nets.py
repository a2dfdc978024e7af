"""A network of DHT peers in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from owm.clock import SystemClock
from owm.dht import DhtParams, KademliaDht
from owm.identity import Identity
from owm.net import MemoryHub, MemoryNetwork

NETWORK = "test-network"
DEVNET = DhtParams(dial_back_groups=0)


@dataclass
class Peer:
    identity: Identity
    network: MemoryNetwork
    dht: KademliaDht


def identity(number: int) -> Identity:
    return Identity(hashlib.sha256(b"dht-test-%d" % number).digest())


@asynccontextmanager
async def running_dht(network: MemoryNetwork, params: DhtParams = DEVNET, **options: Any) -> AsyncIterator[KademliaDht]:
    """The DHT of one peer, which knows nobody yet; ``network`` must be running."""
    dht = KademliaDht(
        network,
        network_id=NETWORK,
        clock=SystemClock(),
        random=Random(bytes(network.peer_id)),
        params=params,
        devnet=True,
        **options,
    )
    async with dht.running():
        yield dht


@asynccontextmanager
async def running_peers(
    count: int, hub: MemoryHub | None = None, params: DhtParams = DEVNET, first: int = 0, **options: Any
) -> AsyncIterator[list[Peer]]:
    """``count`` peers that have joined through the first one."""
    hub = hub or MemoryHub(Random(1))
    peers: list[Peer] = []
    async with AsyncExitStack() as stack:
        for number in range(first, first + count):
            who = identity(number)
            network = hub.network(who)
            await stack.enter_async_context(network.running())
            dht = KademliaDht(
                network,
                network_id=NETWORK,
                clock=SystemClock(),
                random=Random(number),
                params=params,
                devnet=True,
                **options,
            )
            await stack.enter_async_context(dht.running())
            if peers:
                await network.connect(peers[0].identity.peer_id, peers[0].network.addresses)
                await dht.bootstrap()
            peers.append(Peer(who, network, dht))
        yield peers
