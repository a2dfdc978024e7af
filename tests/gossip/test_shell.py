"""The shell around the core: peers that come and go faster than its tasks start."""

from __future__ import annotations

from random import Random

import trio
from trio.testing import MockClock

from owm.gossip import GossipService
from owm.net import MemoryHub
from tests.net.conformance import LIMITS, identity
from tests.tasks.world import TrioClock

NETWORK = "0123456789abcdef0123456789abcdef"


async def test_a_peer_that_leaves_before_its_sender_ran_ends_nothing_else(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1))
    network = hub.network(identity(1), limits=LIMITS)
    other = hub.network(identity(2), limits=LIMITS)
    service = GossipService(network, network_id=NETWORK, clock=TrioClock(), random=Random(1))
    async with network.running(), other.running(), service.running() as gossip:
        await network.connect(other.peer_id, other.addresses)
        await trio.sleep(1)
        shell = gossip._shell
        for _ in range(5):
            shell._left(other.peer_id)
            shell._came(other.peer_id)
        shell._left(other.peer_id)  # the task of the last coming has not run yet
        await trio.sleep(1)
        assert shell.outboxes == {}
        shell._came(other.peer_id)
        assert set(shell.outboxes) == {other.peer_id}
