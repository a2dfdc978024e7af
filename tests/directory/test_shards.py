"""Who relays manifests: everybody in a small network, a few peers for each topic in a large one, in turns."""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.dht import DhtStatistics
from owm.directory._core_turns import TURN
from owm.directory.shards import SHARDS, ManifestTopics
from owm.gossip import GossipParams, GossipService, ScoreParams
from owm.identity import Identity
from owm.net import MemoryHub
from owm.records import LogHead, sign_record
from tests.tasks.world import TrioClock

NETWORK = "0123456789abcdef0123456789abcdef"


class Gossip:
    """Notes which topics are relayed."""

    def __init__(self) -> None:
        self.relayed: set[str] = set()

    def relay(self, topic: str, _validator: object) -> None:
        self.relayed.add(topic)

    def register_current(self, _topic: str, _current: object) -> None:
        return

    def unsubscribe(self, topic: str) -> None:
        self.relayed.discard(topic)

    def meet(self, _peer: object) -> None:
        return

    class core:
        @staticmethod
        def subscribers(_topic: str) -> tuple[()]:
            return ()


class Dht:
    size: float | None = 10.0
    surveyed: float | None = None  # as the neighbourhood has it

    def __init__(self) -> None:
        self.provided: set[bytes] = set()

    async def provide(self, key: bytes) -> int:
        self.provided.add(key)
        return 1

    async def unprovide(self, key: bytes) -> None:
        self.provided.discard(key)

    async def find_providers(self, _key: bytes, _limit: int) -> list[object]:
        return []

    async def survey(self) -> float | None:
        return self.size if self.surveyed is None else self.surveyed

    def statistics(self) -> DhtStatistics:
        return DhtStatistics(mode="server", table=1, records=0, providers=0, lookups=0, queries_sent=0,
                             queries_failed=0, queries_served=0, network_size=self.size)  # fmt: skip


@pytest.mark.slow
async def test_relays_are_thinned_as_the_network_grows_and_come_back_when_it_shrinks(
    autojump_clock: MockClock,
) -> None:
    hub = MemoryHub(Random(1))
    gossips, dhts = [Gossip() for _ in range(150)], [Dht() for _ in range(150)]
    async with trio.open_nursery() as nursery:
        for number, (gossip, dht) in enumerate(zip(gossips, dhts, strict=True)):
            network = hub.network(Identity(number.to_bytes(32, "big")))
            topics = ManifestTopics(gossip, dht, network, "net", TrioClock(), Random(number))  # type: ignore[arg-type]

            async def run(topics: ManifestTopics = topics) -> None:
                async with topics.running():
                    await trio.sleep_forever()

            nursery.start_soon(run)
        await trio.sleep(100)
        assert all(len(gossip.relayed) == 2 for gossip in gossips), "a small network needs everybody"
        Dht.size = 375.0
        wanted = 6 * SHARDS / (2 * 375)
        turns = [0] * len(gossips)
        for turn in range(4):
            await trio.sleep_until((turn + 0.5) * TURN)
            relaying = [bool(gossip.relayed) for gossip in gossips]
            assert 0.4 * wanted < sum(relaying) / len(gossips) < 2 * wanted
            for gossip, dht in zip(gossips, dhts, strict=True):
                assert len(dht.provided) == len(gossip.relayed), "who does not relay is not looked for as a relay"
            turns = [count + relays for count, relays in zip(turns, relaying, strict=True)]
        assert max(turns) <= 2, "nobody carries the load for long"
        Dht.size = 10.0
        await trio.sleep(200)
        assert all(len(gossip.relayed) == 2 for gossip in gossips)
        nursery.cancel_scope.cancel()


async def test_who_left_relaying_to_others_and_then_reads_all_still_refuses_what_is_no_manifest(
    autojump_clock: MockClock,
) -> None:
    hub, clock = MemoryHub(Random(1)), TrioClock()
    params = GossipParams(score=ScoreParams(colocation_weight=0.0))
    reader, liar = Identity(bytes([255]) * 32), Identity(bytes([2]) * 32)
    networks = [hub.network(who) for who in (reader, liar)]
    dht = Dht()
    async with AsyncExitStack() as stack:
        gossips = []
        for number, network in enumerate(networks):
            await stack.enter_async_context(network.running())
            service = GossipService(network, network_id=NETWORK, clock=clock, random=Random(number), params=params)
            gossips.append(await stack.enter_async_context(service.running()))
        await networks[0].connect(liar.peer_id, networks[1].addresses)
        topics = ManifestTopics(gossips[0], dht, networks[0], NETWORK, TrioClock(), Random(3))  # type: ignore[arg-type]
        await stack.enter_async_context(topics.running())
        await trio.sleep(1)
        relayed = gossips[0].core.subscriptions()
        assert len(relayed) == 2
        dht.size = 1e6  # so large that others relay
        await trio.sleep(100)
        assert gossips[0].core.subscriptions() == ()
        channel = await topics.subscribe_all()
        for topic in relayed:
            gossips[1].subscribe(topic)
        await trio.sleep(3)
        for number, topic in enumerate(relayed):
            head = LogHead(sequence=int(clock.time() * 1000) + number, size=number, root=b"r" * 32)
            await gossips[1].publish(topic, sign_record(liar, head, NETWORK))
        await trio.sleep(3)
        assert channel.statistics().current_buffer_used == 0
        assert gossips[0].statistics().rejected == 2


async def test_who_joins_a_large_network_does_not_begin_to_relay(autojump_clock: MockClock) -> None:
    gossip, dht, joined = Gossip(), Dht(), trio.Event()
    dht.size = 1.0  # as it looks to who has met a single peer
    network = MemoryHub(Random(1)).network(Identity(bytes([255]) * 32))
    topics = ManifestTopics(gossip, dht, network, "net", TrioClock(), Random(3), joined=joined.wait)  # type: ignore[arg-type]
    async with topics.running():
        await trio.sleep(20)
        assert not gossip.relayed
        dht.size = 1e6
        joined.set()
        await trio.sleep(200)
        assert not gossip.relayed and not dht.provided
        dht.size = 10.0
        await trio.sleep(100)
        assert len(gossip.relayed) == len(dht.provided) == 2


async def test_a_relay_that_is_crowded_by_sybils_goes_on_relaying(autojump_clock: MockClock) -> None:
    gossip, dht = Gossip(), Dht()
    network = MemoryHub(Random(1)).network(Identity(bytes([255]) * 32))
    async with ManifestTopics(gossip, dht, network, "net", TrioClock(), Random(3)).running():  # type: ignore[arg-type]
        await trio.sleep(10)
        dht.size, dht.surveyed = 1e6, 11.0
        await trio.sleep(300)
        assert len(gossip.relayed) == len(dht.provided) == 2
        dht.surveyed = 1e6
        await trio.sleep(100)
        assert not gossip.relayed and not dht.provided


async def test_who_is_alone_begins_to_relay(autojump_clock: MockClock) -> None:
    gossip, dht = Gossip(), Dht()
    dht.size = None
    network = MemoryHub(Random(1)).network(Identity(bytes([255]) * 32))
    async with ManifestTopics(gossip, dht, network, "net", TrioClock(), Random(3)).running():  # type: ignore[arg-type]
        await trio.sleep(6)
        assert len(gossip.relayed) == len(dht.provided) == 2


async def test_who_begins_to_read_all_while_it_leaves_relaying_keeps_every_topic(autojump_clock: MockClock) -> None:
    hub, clock = MemoryHub(Random(1)), TrioClock()
    network = hub.network(Identity(bytes([255]) * 32))

    class SlowDht(Dht):
        async def unprovide(self, key: bytes) -> None:
            await trio.sleep(5)
            await super().unprovide(key)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(network.running())
        service = GossipService(network, network_id=NETWORK, clock=clock, random=Random(1))
        await stack.enter_async_context(service.running())
        dht = SlowDht()
        topics = ManifestTopics(service, dht, network, NETWORK, TrioClock(), Random(3))  # type: ignore[arg-type]
        await stack.enter_async_context(topics.running())
        await trio.sleep(1)
        assert len(service.core.subscriptions()) == 2
        dht.size = 1e6
        while service.core.subscriptions():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(1)
        await topics.subscribe_all()
        await trio.sleep(60)
        assert len(service.core.subscriptions()) == SHARDS
        assert len(dht.provided) == SHARDS


async def test_a_search_that_finds_nobody_is_repeated_ever_more_rarely(autojump_clock: MockClock) -> None:
    searched: list[float] = []

    class Lonely(Dht):
        async def find_providers(self, _key: bytes, _limit: int) -> list[object]:
            searched.append(trio.current_time())
            return []

    network = MemoryHub(Random(1)).network(Identity(bytes([7]) * 32))
    topics = ManifestTopics(Gossip(), Lonely(), network, "net", TrioClock(), Random(1))  # type: ignore[arg-type]
    with trio.move_on_after(3600):
        async with topics.running():
            await trio.sleep_forever()
    kinds = 3  # subscribers of our own shard, and of two that we relay
    first, last = (sum(start <= at < start + 600 for at in searched) for start in (0, 3000))
    assert 3 * kinds <= first <= 8 * kinds
    assert kinds <= last <= 2 * kinds
