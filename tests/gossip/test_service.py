"""Gossip between services over a network in memory, in virtual time, with real records and signatures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.gossip import GossipParams, GossipService, Received, ScoreParams, Validation
from owm.identity import Identity, PeerId
from owm.net import Link, MemoryHub, MemoryNetwork
from owm.net.errors import NetworkError
from owm.records import LogHead, SignedRecord, sign_record
from tests.net.conformance import LIMITS, identity
from tests.tasks.world import TrioClock

NETWORK = "0123456789abcdef0123456789abcdef"
TOPIC = "/owm/test/news"
PARAMS = GossipParams(score=ScoreParams(colocation_weight=0.0))


class Peer:
    def __init__(self, hub: MemoryHub, number: int) -> None:
        self.identity: Identity = identity(number)
        self.network: MemoryNetwork = hub.network(self.identity, limits=LIMITS)
        self.clock = TrioClock()
        self.gossip = GossipService(
            self.network, network_id=NETWORK, clock=self.clock, random=Random(number), params=PARAMS
        )
        self.sequence = int(self.clock.time() * 1000)

    def record(self, size: int = 1, network: str = NETWORK) -> SignedRecord:
        self.sequence += 1
        return sign_record(self.identity, LogHead(sequence=self.sequence, size=size, root=b"r" * 32), network)


@asynccontextmanager
async def net(count: int, links: int = 4) -> AsyncIterator[list[Peer]]:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    peers = [Peer(hub, 1 + number) for number in range(count)]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
        for number, peer in enumerate(peers):
            for other in Random(number).sample(peers, min(links, count)):
                if other is not peer and not peer.network.is_connected(other.network.peer_id):
                    await peer.network.connect(other.network.peer_id, other.network.addresses)
        yield peers


def drained(channel: trio.MemoryReceiveChannel[Received]) -> list[Received]:
    found = []
    while True:
        try:
            found.append(channel.receive_nowait())
        except trio.WouldBlock:
            return found


async def test_a_record_reaches_every_subscriber_once_and_nobody_is_blamed(autojump_clock: MockClock) -> None:
    async with net(20) as peers:
        channels = [peer.gossip.subscribe(TOPIC) for peer in peers]
        await trio.sleep(5)
        for number, peer in enumerate(peers):
            await peer.gossip.publish(TOPIC, peer.record(number))
        await trio.sleep(5)
        for number, (peer, channel) in enumerate(zip(peers, channels, strict=True)):
            got = sorted(received.record.record.size for received in drained(channel))
            assert got == [other for other in range(20) if other != number]
            assert peer.network.statistics().penalties == {}
            assert peer.gossip.opened == 19, "one signature check per delivery"


@pytest.mark.attack("T9")
async def test_records_are_not_pushed_again_at_a_peer_that_reconnects(autojump_clock: MockClock) -> None:
    async with net(2) as (victim, flapper):
        channels = [peer.gossip.subscribe(TOPIC) for peer in (victim, flapper)]
        await trio.sleep(5)
        for number in range(100):
            await victim.gossip.publish(TOPIC, victim.record(number))
        await trio.sleep(10)
        assert len(drained(channels[1])) == 100
        sent = victim.network.statistics().bytes_out
        for _ in range(30):
            await flapper.network.disconnect(victim.network.peer_id)
            await trio.sleep(60)
            await flapper.network.connect(victim.network.peer_id, victim.network.addresses)
            await trio.sleep(10)
        assert flapper.network.is_connected(victim.network.peer_id)
        again = (victim.network.statistics().bytes_out - sent) / 30
        assert again < 2000, f"{again:.0f} bytes for each visit, where the records are {100 * 237}"
        assert drained(channels[1]) == []


async def test_who_publishes_what_validators_reject_is_blamed_and_cut_off(autojump_clock: MockClock) -> None:
    def odd_only(record: SignedRecord, _peer: PeerId) -> Validation:
        return Validation.ACCEPT if record.record.size % 2 else Validation.REJECT

    async with net(3, 3) as peers:
        liar, first, second = peers
        channels = [peer.gossip.subscribe(TOPIC, odd_only) for peer in (first, second)]
        liar.gossip.subscribe(TOPIC)
        await trio.sleep(3)
        await liar.gossip.publish(TOPIC, liar.record(1))
        for _ in range(12):
            await liar.gossip.publish(TOPIC, liar.record(2))
            await trio.sleep(0.2)
        assert [len(drained(channel)) for channel in channels] == [1, 1]
        assert first.gossip.core.score(liar.network.peer_id) < 0 or not first.network.is_connected(liar.network.peer_id)
        assert sum(first.network.statistics().penalties.values()) >= 1
        await first.gossip.publish(TOPIC, first.record(3))
        await trio.sleep(2)
        assert len(drained(channels[1])) == 1, "the honest ones carry on"


async def test_records_of_another_network_and_forged_ones_go_nowhere(autojump_clock: MockClock) -> None:
    async with net(3, 3) as peers:
        stranger, first, second = peers
        channel = second.gossip.subscribe(TOPIC)
        first.gossip.subscribe(TOPIC)
        stranger.gossip.subscribe(TOPIC)
        await trio.sleep(3)
        await stranger.gossip.publish(TOPIC, stranger.record(1, network="f" * 32))
        await trio.sleep(2)
        assert drained(channel) == []
        assert second.gossip.statistics().rejected >= 1


async def test_a_relay_forwards_and_delivers_nothing_to_itself(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    left, middle, right = (Peer(hub, number) for number in (1, 2, 3))
    async with AsyncExitStack() as stack:
        for peer in (left, middle, right):
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
        await left.network.connect(middle.network.peer_id, middle.network.addresses)
        await right.network.connect(middle.network.peer_id, middle.network.addresses)
        middle.gossip.relay(TOPIC)
        channel = right.gossip.subscribe(TOPIC)
        left.gossip.subscribe(TOPIC)
        await trio.sleep(3)
        await left.gossip.publish(TOPIC, left.record(7))
        await trio.sleep(2)
        assert [received.record.record.size for received in drained(channel)] == [7]
        assert middle.gossip.statistics().delivered == 1


async def test_who_subscribes_late_fetches_what_is_current(autojump_clock: MockClock) -> None:
    async with net(4, 4) as peers:
        *early, late = peers
        current = [early[0].record(number) for number in range(200)]
        for peer in early:
            peer.gossip.subscribe(TOPIC)
            peer.gossip.register_current(TOPIC, lambda: current)
        await trio.sleep(30)
        began = trio.current_time()
        channel = late.gossip.subscribe(TOPIC)
        got: set[bytes] = set()
        with trio.fail_after(5):
            while len(got) < 200:
                got.add((await channel.receive()).record.id)
        assert trio.current_time() - began < 5
        assert got == {record.id for record in current}


async def test_a_reader_that_is_slow_loses_the_oldest_and_holds_nobody_up(autojump_clock: MockClock) -> None:
    async with net(2, 2) as peers:
        one, two = peers
        slow = two.gossip.subscribe(TOPIC)
        one.gossip.subscribe(TOPIC)
        await trio.sleep(3)
        for number in range(1100):
            await one.gossip.publish(TOPIC, one.record(number))
            if number % 50 == 0:
                await trio.sleep(1)
        await trio.sleep(5)
        got = [received.record.record.size for received in drained(slow)]
        assert len(got) == 1024 and got[-1] == 1099
        assert two.gossip.lost == 76


async def test_unsubscribing_ends_the_channel_and_the_traffic(autojump_clock: MockClock) -> None:
    async with net(2, 2) as peers:
        one, two = peers
        channel = two.gossip.subscribe(TOPIC)
        one.gossip.subscribe(TOPIC)
        await trio.sleep(3)
        two.gossip.unsubscribe(TOPIC)
        await trio.sleep(1)
        assert await one.gossip.publish(TOPIC, one.record()) == 0
        with pytest.raises((trio.EndOfChannel, trio.ClosedResourceError)):
            await channel.receive()


async def test_a_peer_that_sends_nonsense_on_the_stream_is_blamed(autojump_clock: MockClock) -> None:
    async with net(2, 2) as peers:
        one, two = peers
        one.gossip.subscribe(TOPIC)
        await trio.sleep(2)
        for _ in range(8):
            try:
                stream = await two.network.open_stream(one.network.peer_id, "/meshsub/1.2.0")
                await stream.send(b"\x05\xff\xff\xff\xff\xff")
                await trio.sleep(1)
                stream.reset()
            except NetworkError:
                break
        assert sum(one.network.statistics().penalties.values()) >= 2


async def test_a_validator_that_fails_is_our_fault_and_nobody_elses(autojump_clock: MockClock) -> None:
    def broken(_record: SignedRecord, _peer: PeerId) -> Validation:
        raise RuntimeError("a defect")

    async with net(2, 2) as peers:
        one, two = peers
        channel = two.gossip.subscribe(TOPIC, broken)
        one.gossip.subscribe(TOPIC)
        await trio.sleep(2)
        await one.gossip.publish(TOPIC, one.record())
        await trio.sleep(2)
        assert drained(channel) == []
        assert two.network.statistics().penalties == {}
