"""Most connections are here for a query, which is over before gossip on them would have begun."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import trio
from trio.testing import MockClock

from owm.gossip import GossipService
from owm.gossip._shell import PROTOCOLS
from owm.net import Link, MemoryHub, MemoryNetwork, Stream
from tests.net.conformance import LIMITS, identity
from tests.tasks.world import TrioClock

NETWORK = "0123456789abcdef0123456789abcdef"
ENOUGH = 12
LASTING = 15.0


class Met:
    """One peer with gossip, and others that take its streams and never begin by themselves."""

    def __init__(self, us: MemoryNetwork, gossip: GossipService, others: list[MemoryNetwork]) -> None:
        self.us = us
        self.gossip = gossip
        self.others = others

    async def connect(self, *numbers: int) -> None:
        for number in numbers:
            await self.us.connect(self.others[number].peer_id, self.others[number].addresses)

    @property
    def talked_to(self) -> set[int]:
        return {n for n, other in enumerate(self.others) if other.peer_id in self.gossip.core.peers()}


@asynccontextmanager
async def met(count: int) -> AsyncIterator[Met]:
    async def silent(stream: Stream) -> None:
        await stream.receive()

    hub = MemoryHub(Random(1), Link(latency=0.01))
    us = hub.network(identity(1), limits=LIMITS)
    others = [hub.network(identity(2 + number), limits=LIMITS) for number in range(count)]
    gossip = GossipService(us, network_id=NETWORK, clock=TrioClock(), random=Random(1), lasting=LASTING)
    async with AsyncExitStack() as stack:
        for other in others:
            await stack.enter_async_context(other.running())
            for protocol in PROTOCOLS:
                other.handle(protocol, silent)
        await stack.enter_async_context(us.running())
        await stack.enter_async_context(gossip.running())
        yield Met(us, gossip, others)


async def test_who_knows_few_talks_to_everybody_at_once(autojump_clock: MockClock) -> None:
    async with met(ENOUGH) as world:
        await world.connect(*range(ENOUGH))
        await trio.sleep(0.1)
        assert world.talked_to == set(range(ENOUGH))


async def test_a_connection_that_does_not_last_costs_no_stream(autojump_clock: MockClock) -> None:
    async with met(ENOUGH + 2) as world:
        await world.connect(*range(ENOUGH))
        await trio.sleep(1)
        await world.connect(ENOUGH, ENOUGH + 1)
        await trio.sleep(LASTING - 3)
        assert world.talked_to == set(range(ENOUGH))
        assert world.us.connection(world.others[ENOUGH].peer_id).streams == 0  # type: ignore[union-attr]
        await world.us.disconnect(world.others[ENOUGH].peer_id)
        await trio.sleep(5)
        assert world.talked_to == {*range(ENOUGH), ENOUGH + 1}, "the other lasted"


async def test_who_begins_is_answered_and_who_was_dialled_for_gossip_is_talked_to(autojump_clock: MockClock) -> None:
    async with met(ENOUGH + 2) as world:
        await world.connect(*range(ENOUGH + 2))
        await trio.sleep(1)
        first, second = world.others[ENOUGH:]
        await first.open_stream(world.us.peer_id, PROTOCOLS[0])
        world.gossip.meet(second.peer_id)
        await trio.sleep(0.5)
        assert world.talked_to == set(range(ENOUGH + 2))
        world.gossip.meet(identity(999).peer_id)  # it has gone meanwhile
        assert len(world.talked_to) == ENOUGH + 2


async def test_who_loses_peers_talks_to_those_that_wait(autojump_clock: MockClock) -> None:
    async with met(ENOUGH + 3) as world:
        await world.connect(*range(ENOUGH + 3))
        await trio.sleep(1)
        for number in (0, 1):
            await world.us.disconnect(world.others[number].peer_id)
        await trio.sleep(2)
        assert world.talked_to == set(range(2, ENOUGH + 2)), "the longest connected ones take their places"
