"""Sets of records between neighbours: what a newcomer fetches first, and what is compared now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from random import Random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from owm.gossip import GossipParams, GossipService, ScoreParams, Validation
from owm.gossip._core_reconcile import Summary
from owm.gossip._identifiers import id_of_record, record_message_id
from owm.identity import PeerId
from owm.net import Calls, Link, MemoryHub, Stream
from owm.net.errors import NetworkError, RemoteError
from owm.records import LogHead, SignedRecord, sign_record
from tests.gossip.test_service import NETWORK, Peer
from tests.net.conformance import identity

TOPIC = "/owm/test/for ever"
SYNC = f"/owm/{NETWORK}/sync/1"


class Keeper(Peer):
    """A peer that keeps all records of the topic."""

    def __init__(self, hub: MemoryHub, number: int, every: float = 60.0) -> None:
        super().__init__(hub, number)
        params = GossipParams(score=ScoreParams(colocation_weight=0.0))
        self.gossip = GossipService(
            self.network,
            network_id=NETWORK,
            clock=self.clock,
            random=Random(number),
            params=params,
            compare_every=every,
        )
        self.set: dict[bytes, SignedRecord] = {}
        self.gossip.register_current(TOPIC, self.set.values, grow_only=True)

    def keep(self, records: Iterable[SignedRecord]) -> None:
        self.set.update((record.envelope, record) for record in records)

    async def read(self) -> None:
        async for received in self.gossip.subscribe(TOPIC):
            self.keep([received.record])

    async def say(self, size: int) -> None:
        record = self.record(size)
        self.keep([record])
        await self.gossip.publish(TOPIC, record)


@asynccontextmanager
async def keepers(
    count: int, every: float = 60.0, first: float | None = None
) -> AsyncIterator[tuple[MemoryHub, list[Keeper]]]:
    """Connected peers that compare their sets ``every`` so many seconds, or the first of them at another pace."""
    hub = MemoryHub(Random(1), Link(latency=0.01))
    paces = [first or every] + [every] * (count - 1)
    peers = [Keeper(hub, 1 + number, pace) for number, pace in enumerate(paces)]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(peer.read)
            await connect(peers)
            yield hub, peers
            nursery.cancel_scope.cancel()


async def connect(peers: list[Keeper], degree: int = 4) -> None:
    for number, peer in enumerate(peers):
        for other in Random(number).sample(peers, min(degree, len(peers))):
            if other is not peer:
                await peer.network.connect(other.network.peer_id, other.network.addresses)


def signed(number: int, count: int, start: int = 1_700_000_000_000) -> list[SignedRecord]:
    """Records by identity ``number``."""
    return [
        sign_record(identity(number), LogHead(sequence=start + n, size=n, root=b"r" * 32), NETWORK)
        for n in range(count)
    ]


@pytest.mark.slow
async def test_halves_of_a_network_that_were_apart_come_to_hold_the_same_set(autojump_clock: MockClock) -> None:
    async with keepers(12) as (hub, peers):
        await trio.sleep(20)
        left, right = peers[:6], peers[6:]
        hub.partition([p.network.peer_id for p in left], [p.network.peer_id for p in right])
        await trio.sleep(120)  # connections between them are given up
        for number in range(60):
            await left[number % 6].say(number)
            await right[number % 6].say(1000 + number)
            await trio.sleep(1)
        await trio.sleep(400)  # nothing of it can be asked for any more
        assert {len(peer.set) for peer in peers} == {60}
        hub.heal()
        await connect(peers)
        began = trio.current_time()
        with trio.fail_after(600):
            while {len(peer.set) for peer in peers} != {120}:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(10)
        assert trio.current_time() - began < 420
        assert len({frozenset(peer.set) for peer in peers}) == 1
        assert all(peer.network.statistics().penalties == {} for peer in peers)


async def test_one_comparison_goes_both_ways(autojump_clock: MockClock) -> None:
    """Only one of the two ever asks: it gets what it lacks, and gives what the other lacks."""
    async with keepers(2, every=1e6, first=60.0) as (_, (one, two)):
        await trio.sleep(20)
        one.keep(signed(50, 100))
        two.keep(signed(51, 100))
        await trio.sleep(100)
        assert len(one.set) == len(two.set) == 200
        assert one.network.statistics().penalties == two.network.statistics().penalties == {}


@pytest.mark.attack("G10")
async def test_another_peers_signature_under_the_same_payload_does_not_pass_for_the_true_record(
    autojump_clock: MockClock,
) -> None:
    true, copied = signed(50, 3), signed(51, 3)
    assert [record.id for record in true] == [record.id for record in copied]
    async with keepers(2) as (_, (one, two)):
        await trio.sleep(20)
        one.keep(true)
        two.keep(copied)
        await trio.sleep(200)
        assert set(one.set) == set(two.set) == {record.envelope for record in (*true, *copied)}


async def test_what_is_given_at_once_is_bounded_and_the_rest_comes_later(autojump_clock: MockClock) -> None:
    async with keepers(2, every=1e6, first=60.0) as (_, (one, two)):
        await trio.sleep(20)
        one.keep(signed(50, 700))
        sizes = [0]
        for _ in range(8):
            await trio.sleep(40)  # there is one comparison at most meanwhile
            sizes.append(len(two.set))
        assert max(after - before for before, after in pairwise(sizes)) == 256
        assert sizes[-1] == 700
        assert two.network.statistics().penalties == {}


async def test_sets_that_do_not_only_grow_are_not_compared(autojump_clock: MockClock) -> None:
    async with keepers(2) as (_, (one, two)):
        for peer in (one, two):
            peer.gossip.register_current(TOPIC, peer.set.values)
        await trio.sleep(20)
        one.keep(signed(50, 10))
        await trio.sleep(300)
        assert len(two.set) == 0
        calls = Calls(one.network, SYNC)
        async with calls.running():
            with pytest.raises(RemoteError):
                await calls.request(two.network.peer_id, give(signed(50, 1)))


def give(records: Iterable[SignedRecord], topic: str = TOPIC) -> bytes:
    return msgspec.msgpack.encode({"type": "give", "topic": topic, "records": [r.envelope for r in records]})


async def test_who_gives_more_than_may_be_judged_is_told_to_stop(autojump_clock: MockClock) -> None:
    """Three thousand records at once: no more are judged than of a peer's gossip."""
    async with keepers(2, every=1e6) as (_, (one, two)):
        await trio.sleep(20)
        calls = Calls(one.network, SYNC, max_request=1 << 20)
        records = signed(50, 3_000)
        taken = 0
        began = trio.current_time()
        async with calls.running():
            for start in range(0, 3_000, 200):
                answer = await calls.request(two.network.peer_id, give(records[start : start + 200]))
                taken += msgspec.msgpack.decode(answer)
        passed = trio.current_time() - began
        params = two.gossip.core.params
        assert taken == len(two.set) <= params.validations_burst + params.validations * (passed + 1)
        assert two.gossip.opened == taken < 1500


async def test_who_gives_what_is_not_valid_is_cut_off(autojump_clock: MockClock) -> None:
    async with keepers(2, every=1e6) as (_, (one, two)):
        await trio.sleep(20)
        forged = [record.envelope[:-1] + bytes([record.envelope[-1] ^ 1]) for record in signed(50, 100)]
        calls = Calls(one.network, SYNC)
        async with calls.running():
            for start in range(0, 100, 5):
                request = {"type": "give", "topic": TOPIC, "records": forged[start : start + 5]}
                try:
                    await calls.request(two.network.peer_id, msgspec.msgpack.encode(request))
                except NetworkError:
                    break
        assert two.set == {}
        assert sum(two.network.statistics().penalties.values()) >= 1
        assert two.gossip.opened < 100, "it is soon not listened to"


async def test_who_answers_with_records_that_nobody_asked_for_is_left_and_blamed(autojump_clock: MockClock) -> None:
    liar_set, other = signed(50, 400), signed(51, 400)

    async def lie(call: object) -> None:
        request = msgspec.msgpack.decode(call.request)  # type: ignore[attr-defined]
        if request["type"] == "compare":
            name = record_message_id(NETWORK)
            summary = Summary(id_of_record(record, name) for record in liar_set)
            answer = [summary.node(prefix) for prefix in request["prefixes"]]
        else:
            answer = [record.envelope for record in other[: len(request["ids"])]]
        await call.reply(msgspec.msgpack.encode(answer))  # type: ignore[attr-defined]

    async with keepers(2) as (_, (one, two)):
        Calls(one.network, SYNC).serve(lie)  # type: ignore[arg-type]
        await trio.sleep(100)
        assert two.set == {}
        assert two.gossip.opened == 0
        assert sum(two.network.statistics().penalties.values()) >= 1


async def hang(stream: Stream) -> None:
    """A peer that accepts every question and answers none."""
    while await stream.receive():
        pass


@pytest.mark.parametrize("silent", [1, 2, 3])
async def test_silent_peers_do_not_hold_a_newcomer_up(autojump_clock: MockClock, silent: int) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    late, *early = (Peer(hub, 1 + number) for number in range(silent + 2))
    current = early[-1].record(1), early[-1].record(2)
    async with AsyncExitStack() as stack:
        for peer in (late, *early):
            await stack.enter_async_context(peer.network.running())
            await stack.enter_async_context(peer.gossip.running())
        for peer in early:
            peer.gossip.subscribe(TOPIC)
            peer.gossip.register_current(TOPIC, lambda: current)
        for peer in early[:silent]:
            peer.network.handle(SYNC, hang)
        for peer in early:
            await late.network.connect(peer.network.peer_id, peer.network.addresses)
        await trio.sleep(1)
        began = trio.current_time()
        channel = late.gossip.subscribe(TOPIC)
        with trio.move_on_after(5):
            for _ in current:
                await channel.receive()
        assert trio.current_time() - began < 3
        assert late.network.statistics().penalties == {}, "silence is slow, not wrong"


async def test_two_that_answer_share_the_work(autojump_clock: MockClock) -> None:
    """A newcomer that keeps what it gets fetches little twice."""
    async with keepers(3, every=1e6) as (hub, (one, two, late)):
        await trio.sleep(20)
        records = signed(50, 1500)
        one.keep(records)
        two.keep(records)
        given = 0

        def observe(source: PeerId, target: PeerId, protocol: str, data: bytes) -> None:
            nonlocal given
            if target == late.network.peer_id and protocol == SYNC:
                given += len(data)

        hub.observer = observe
        late.gossip.unsubscribe(TOPIC)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.read)
            with trio.fail_after(10):
                while len(late.set) < 1500:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.1)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        once = sum(len(record.envelope) for record in records)
        assert given < 1.7 * once


async def test_a_validator_sees_what_was_fetched_and_given(autojump_clock: MockClock) -> None:
    async with keepers(2, every=60.0) as (_, (one, two)):
        await trio.sleep(20)
        two.gossip.relay(TOPIC, lambda record, _: Validation.IGNORE if record.record.size % 2 else Validation.ACCEPT)
        one.keep(signed(50, 10))
        await trio.sleep(200)
        assert sorted(record.record.size for record in two.set.values()) == [0, 2, 4, 6, 8]
