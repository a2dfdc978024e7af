"""The shell around the core: peers that come and go faster than its tasks start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.gossip import GossipParams, GossipService, ScoreParams
from owm.net import Link, MemoryHub, MemoryNetwork, Stream
from tests.gossip.test_service import Peer, drained
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
            shell.meet(other.peer_id)
        shell._left(other.peer_id)  # the task of the last coming has not run yet
        await trio.sleep(1)
        assert shell.outboxes == {}
        shell.meet(other.peer_id)
        assert set(shell.outboxes) == {other.peer_id}


def streams_of(network: MemoryNetwork) -> list[Stream]:
    """The gossip streams that a peer opens from now on."""
    opened: list[Stream] = []
    open_stream = network.open_stream

    async def noting(peer: object, protocol: str, *, bulk: bool = False) -> Stream:
        stream = await open_stream(peer, protocol, bulk=bulk)  # type: ignore[arg-type]
        if protocol.startswith("/meshsub"):
            opened.append(stream)
        return stream

    network.open_stream = noting  # type: ignore[method-assign,assignment]
    return opened


async def test_a_broken_stream_costs_nothing_but_a_moment(autojump_clock: MockClock) -> None:
    """The connection lives, and so does the peer's own stream, on which it will never repeat what it subscribes to."""
    hub = MemoryHub(Random(1), Link(latency=0.01))
    one, two = Peer(hub, 1), Peer(hub, 2)
    opened = streams_of(one.network)
    async with AsyncExitStack() as stack:
        for peer in (one, two):
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
        await one.network.connect(two.network.peer_id, two.network.addresses)
        channels = [peer.gossip.subscribe("news") for peer in (one, two)]
        one.gossip.subscribe("left meanwhile")
        two.gossip.subscribe("left meanwhile")
        await trio.sleep(5)
        for round_ in range(3):
            opened[-1].reset()
            one.gossip.unsubscribe("left meanwhile")
            one.gossip.subscribe(f"joined meanwhile {round_}")
            for _ in range(20):
                await trio.sleep(1)
                assert one.gossip.core.subscribers("news") == (two.network.peer_id,), "it is known all the while"
                assert one.gossip.core.mesh("news") == (two.network.peer_id,)
            assert len(opened) == 2 + round_, "there is a new stream"
            assert two.gossip.core.mesh("news") == (one.network.peer_id,)
            assert two.gossip.core.subscribers(f"joined meanwhile {round_}") == (one.network.peer_id,)
            assert two.gossip.core.subscribers("left meanwhile") == ()
            await one.gossip.publish("news", one.record(round_))
            await two.gossip.publish("news", two.record(100 + round_))
            await trio.sleep(1)
            got = [[received.record.record.size for received in drained(channel)] for channel in channels]
            assert got == [[100 + round_], [round_]]
        assert one.network.statistics().penalties == two.network.statistics().penalties == {}
        await one.network.disconnect(two.network.peer_id)
        await trio.sleep(20)
        assert one.gossip._shell.outboxes == two.gossip._shell.outboxes == {}


async def test_a_link_keeps_its_direction_and_subnet_when_its_stream_breaks(autojump_clock: MockClock) -> None:
    """Five peers of one subnet are too many, broken streams or not."""
    hub = MemoryHub(Random(1), Link(latency=0.01))
    network = hub.network(identity(1), limits=LIMITS)
    params = GossipParams(score=ScoreParams(colocation_weight=-1.0, colocation_threshold=2))
    service = GossipService(network, network_id=NETWORK, clock=TrioClock(), random=Random(1), params=params)
    opened = streams_of(network)
    others = [hub.network(identity(2 + n), address=f"/ip4/8.8.0.{1 + n}/tcp/1", limits=LIMITS) for n in range(5)]
    scores: list[list[float]] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(network.running())
        await stack.enter_async_context(service.running())
        for number, other in enumerate(others):
            await stack.enter_async_context(other.running())
            gossip = GossipService(other, network_id=NETWORK, clock=TrioClock(), random=Random(number))
            await stack.enter_async_context(gossip.running())
            await network.connect(other.peer_id, other.addresses)
        await trio.sleep(5)
        scores.append([service.core.score(other.peer_id) for other in others])
        for stream in list(opened):
            stream.reset()
        await trio.sleep(20)
        scores.append([service.core.score(other.peer_id) for other in others])
    assert len(opened) == 10
    assert scores == [[pytest.approx(-9.0)] * 5] * 2
