"""Who relays manifests: everybody in a small network, two dozen peers for each topic in a large one."""

from __future__ import annotations

from random import Random

import trio
from trio.testing import MockClock

from owm.dht import DhtStatistics
from owm.directory.shards import SHARDS, ManifestTopics
from owm.identity import Identity
from owm.net import MemoryHub


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

    class core:
        @staticmethod
        def subscribers(_topic: str) -> tuple[()]:
            return ()


class Dht:
    size = 10.0

    def __init__(self) -> None:
        self.provided: set[bytes] = set()

    async def provide(self, key: bytes) -> int:
        self.provided.add(key)
        return 1

    async def unprovide(self, key: bytes) -> None:
        self.provided.discard(key)

    async def find_providers(self, _key: bytes, _limit: int) -> list[object]:
        return []

    def statistics(self) -> DhtStatistics:
        return DhtStatistics(mode="server", table=1, records=0, providers=0, lookups=0, queries_sent=0,
                             queries_failed=0, queries_served=0, network_size=self.size)  # fmt: skip


async def test_relays_are_thinned_as_the_network_grows_and_come_back_when_it_shrinks(
    autojump_clock: MockClock,
) -> None:
    hub = MemoryHub(Random(1))
    gossips, dhts = [Gossip() for _ in range(400)], [Dht() for _ in range(400)]
    async with trio.open_nursery() as nursery:
        for number, (gossip, dht) in enumerate(zip(gossips, dhts, strict=True)):
            network = hub.network(Identity(number.to_bytes(32, "big")))
            topics = ManifestTopics(gossip, dht, network, "net", Random(number))  # type: ignore[arg-type]

            async def run(topics: ManifestTopics = topics) -> None:
                async with topics.running():
                    await trio.sleep_forever()

            nursery.start_soon(run)
        await trio.sleep(100)
        assert all(len(gossip.relayed) == 2 for gossip in gossips), "a small network needs everybody"
        Dht.size = 2000.0
        await trio.sleep(200)
        share = sum(bool(gossip.relayed) for gossip in gossips) / len(gossips)
        wanted = 24 * SHARDS / (2 * 2000)
        assert 0.5 * wanted < share < 2 * wanted
        for gossip, dht in zip(gossips, dhts, strict=True):
            assert len(dht.provided) == len(gossip.relayed), "who does not relay is not looked for as a relay"
        Dht.size = 10.0
        await trio.sleep(200)
        assert all(len(gossip.relayed) == 2 for gossip in gossips)
        nursery.cancel_scope.cancel()
