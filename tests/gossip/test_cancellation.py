"""Cancelling anything at any moment leaves nothing behind."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Link, MemoryHub
from tests.gossip.test_service import TOPIC, Peer, drained, net


@pytest.mark.parametrize("after", [0.0, 0.005, 0.015, 0.02, 0.035, 0.1, 1.0, 3.0])
async def test_a_service_cancelled_at_any_moment_leaves_the_others_whole(
    autojump_clock: MockClock, after: float
) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    one, two, three = (Peer(hub, number) for number in (1, 2, 3))
    async with one.network.running(), one.gossip.running(), three.network.running(), three.gossip.running():
        channel = one.gossip.subscribe(TOPIC)
        three.gossip.subscribe(TOPIC)
        await three.network.connect(one.network.peer_id, one.network.addresses)
        with trio.move_on_after(after) as scope:
            async with two.network.running(), two.gossip.running():
                await two.network.connect(one.network.peer_id, one.network.addresses)
                two.gossip.subscribe(TOPIC)
                while True:
                    await two.gossip.publish(TOPIC, two.record())
                    await trio.sleep(0.05)
        assert scope.cancelled_caught
        await trio.sleep(2)
        assert one.network.peer_id not in two.gossip._shell.outboxes
        assert set(one.gossip.core.peers()) == {three.network.peer_id}
        assert set(one.gossip._shell.outboxes) == {three.network.peer_id}
        drained(channel)
        await three.gossip.publish(TOPIC, three.record(42))
        await trio.sleep(2)
        assert [received.record.record.size for received in drained(channel)] == [42]


async def test_a_reader_that_is_cancelled_leaves_its_channel_usable(autojump_clock: MockClock) -> None:
    async with net(2, 2) as peers:
        one, two = peers
        channel = two.gossip.subscribe(TOPIC)
        one.gossip.subscribe(TOPIC)
        await trio.sleep(2)
        with trio.move_on_after(0.5) as scope:
            await channel.receive()
        assert scope.cancelled_caught
        await one.gossip.publish(TOPIC, one.record(5))
        with trio.fail_after(5):
            assert (await channel.receive()).record.record.size == 5


async def test_a_publish_that_is_cancelled_is_sent_whole_or_not_at_all(autojump_clock: MockClock) -> None:
    async with net(2, 2) as peers:
        one, two = peers
        channel = two.gossip.subscribe(TOPIC)
        one.gossip.subscribe(TOPIC)
        await trio.sleep(2)
        with trio.CancelScope() as scope:
            scope.cancel()
            await one.gossip.publish(TOPIC, one.record(5))
        assert scope.cancelled_caught
        await trio.sleep(2)
        assert drained(channel) == []
        await one.gossip.publish(TOPIC, one.record(6))
        await trio.sleep(2)
        assert [received.record.record.size for received in drained(channel)] == [6]


async def test_a_topic_left_while_its_first_fetch_runs_ends_it(autojump_clock: MockClock) -> None:
    async with net(3, 3) as peers:
        one, two, _ = peers
        one.gossip.subscribe(TOPIC)
        one.gossip.register_current(TOPIC, lambda: [one.record(n) for n in range(500)])
        await trio.sleep(2)
        two.gossip.subscribe(TOPIC)
        await trio.sleep(0.015)
        two.gossip.unsubscribe(TOPIC)
        await trio.sleep(10)
        assert two.gossip.core.held()["mesh_links"] == 0
        assert two.network.statistics().penalties == {}
