"""Strictly signed topics, as libp2p's default has them, between peers in memory and virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.gossip import GossipParams, PubSub, ScoreParams, TopicMessage
from owm.gossip._core import Verdict
from owm.gossip._core_wire import Message, Rpc
from owm.gossip._identifiers import is_signed_by_its_author, sign_message
from owm.net import Link, MemoryHub
from tests.net.conformance import LIMITS, identity
from tests.tasks.world import TrioClock

TOPIC = "news"
PARAMS = GossipParams(score=ScoreParams(colocation_weight=0.0))


@asynccontextmanager
async def net(count: int, **options: object) -> AsyncIterator[list[PubSub]]:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    made = []
    async with AsyncExitStack() as stack:
        networks = []
        for number in range(count):
            who = identity(1 + number)
            network = hub.network(who, limits=LIMITS)
            await stack.enter_async_context(network.running())
            pubsub = PubSub(network, identity=who, clock=TrioClock(), random=Random(number), params=PARAMS, **options)
            await stack.enter_async_context(pubsub.running())
            for other in networks:
                await network.connect(other.peer_id, other.addresses)
            networks.append(network)
            made.append(pubsub)
        yield made


async def test_a_message_arrives_once_with_its_authors_name(autojump_clock: MockClock) -> None:
    async with net(5) as peers:
        channels = [peer.subscribe(TOPIC) for peer in peers]
        await trio.sleep(3)
        assert await peers[0].publish(TOPIC, b"first") == 4
        await trio.sleep(1)
        for channel in channels[1:]:
            found = channel.receive_nowait()
            assert (found.topic, found.data, found.author) == (TOPIC, b"first", identity(1).peer_id)
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
        with pytest.raises(trio.WouldBlock):
            channels[0].receive_nowait()  # not to its author


async def test_a_validator_keeps_messages_from_readers(autojump_clock: MockClock) -> None:
    def short_only(message: TopicMessage) -> Verdict:
        return Verdict.ACCEPT if len(message.data) < 10 else Verdict.IGNORE

    async with net(2, validator=short_only) as (one, two):
        channel = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        await trio.sleep(3)
        await one.publish(TOPIC, b"much too long for this topic")
        await one.publish(TOPIC, b"short")
        await trio.sleep(1)
        assert channel.receive_nowait().data == b"short"


async def test_a_validator_that_fails_is_our_fault_and_nobody_elses(autojump_clock: MockClock) -> None:
    def broken(message: TopicMessage) -> Verdict:
        if message.data == b"odd":
            raise RuntimeError("a defect")
        return Verdict.ACCEPT

    async with net(2, validator=broken) as (one, two):
        channel = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        await trio.sleep(3)
        for data in (b"odd", b"even", b"odd"):
            await one.publish(TOPIC, data)
        await trio.sleep(0.5)
        assert channel.receive_nowait().data == b"even", "the stream goes on"
        assert two.core.subscribers(TOPIC) == (identity(1).peer_id,)
        assert two.core.score(identity(1).peer_id) >= 0


async def test_leaving_ends_the_subscriptions_and_a_slow_reader_loses_messages(autojump_clock: MockClock) -> None:
    async with net(2, buffer=2) as (one, two):
        channel = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        await trio.sleep(3)
        for number in range(5):
            await one.publish(TOPIC, b"%d" % number)
        await trio.sleep(1)
        two.unsubscribe(TOPIC)
        assert [message.data async for message in channel] == [b"0", b"1"]
        assert two.lost == 3


async def test_forgers_are_blamed(autojump_clock: MockClock) -> None:
    async with net(2) as (one, two):
        channel = two.subscribe(TOPIC)
        one.subscribe(TOPIC)
        await trio.sleep(3)
        forged = sign_message(identity(1), TOPIC, b"true", b"\0" * 8)
        forged = Message(TOPIC, b"false", forged.sender, forged.seqno, forged.signature)
        for peer in list(one._shell.outboxes):
            one._shell.outboxes[peer].put(Rpc(publish=(forged,)), 0)
        await trio.sleep(1)
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        assert two.core.score(identity(1).peer_id) < 0


@given(
    data=st.binary(max_size=200),
    position=st.integers(min_value=0),
    field=st.sampled_from(["data", "seqno", "signature"]),
)
def test_a_change_anywhere_breaks_the_signature(data: bytes, position: int, field: str) -> None:
    message = sign_message(identity(3), TOPIC, data, (7).to_bytes(8, "big"))
    assert is_signed_by_its_author(message)
    value = bytearray(getattr(message, field) or b"\0")
    value[position % len(value)] ^= 1
    changed = {"data": message.data, "seqno": message.seqno, "signature": message.signature, field: bytes(value)}
    assert not is_signed_by_its_author(
        Message(TOPIC, changed["data"], message.sender, changed["seqno"], changed["signature"])
    )
