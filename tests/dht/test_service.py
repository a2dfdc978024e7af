"""The DHT over a network in memory, in virtual time."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from random import Random

import pytest
import trio

from owm.dht import DhtParams
from owm.dht._core_types import Contact
from owm.net import Link, MemoryHub
from owm.records import LogHead, sign_record
from tests.dht._nets import DEVNET, NETWORK, identity, running_dht, running_peers

WAN = Link(latency=0.05, jitter=0.01)


def log_head(owner, size=1, sequence=None):
    return sign_record(owner, LogHead(sequence=sequence or int(time.time() * 1000), size=size, root=b"r" * 32), NETWORK)


async def test_thirty_peers_find_store_and_provide(autojump_clock):
    """A peer joins through one other, and finds everybody and everything."""
    async with running_peers(30) as peers:
        for seeker, sought in ((3, 27), (29, 1), (15, 16)):
            found = await peers[seeker].dht.find_peer(peers[sought].identity.peer_id)
            assert found is not None
            assert found.addresses == peers[sought].network.addresses
        assert await peers[4].dht.provide(b"role:worker:t1:00") == 20
        providers = await peers[22].dht.find_providers(b"role:worker:t1:00")
        assert [p.peer for p in providers] == [peers[4].identity.peer_id]
        record = log_head(peers[5].identity)
        assert await peers[5].dht.put(record) >= 19
        assert await peers[25].dht.get(record.dht_key) == record
        assert await peers[7].dht.get(b"/owm/log-head/nothing") is None
        assert await peers[7].dht.find_peer(identity(999).peer_id) is None


async def test_a_newer_record_replaces_the_older_for_every_reader(autojump_clock):
    async with running_peers(12) as peers:
        old, new = log_head(peers[0].identity, 1, 1_800_000_000_000), log_head(peers[0].identity, 2, 1_800_000_000_001)
        old = log_head(peers[0].identity, 1, int(time.time() * 1000) - 1)
        new = log_head(peers[0].identity, 2, int(time.time() * 1000))
        await peers[0].dht.put(old)
        await peers[0].dht.put(new)
        for reader in peers[1:]:
            assert await reader.dht.get(new.dht_key) == new


async def test_a_region_store_reaches_readers_that_ask_for_the_region(autojump_clock):
    async with running_peers(12, in_region=lambda key: True) as peers:
        assert await peers[1].dht.provide(b"role:gateway") == 11
        assert [p.peer for p in await peers[8].dht.find_providers(b"role:gateway")] == [peers[1].identity.peer_id]


@pytest.mark.slow
async def test_every_lookup_succeeds_while_a_third_of_fifty_peers_is_black_holed(autojump_clock):
    """30 % vanish without a word: no lookup fails, and the slowest takes less than 3 s of virtual time."""
    hub = MemoryHub(Random(1), WAN)
    random = Random(2)
    async with running_peers(50, hub) as peers:
        dead, live = peers[35:], peers[:35]
        for number, peer in enumerate(live):
            await peer.dht.provide(b"key %d" % number)
        records = [log_head(peer.identity) for peer in live]
        for peer, record in zip(live, records, strict=True):
            await peer.dht.put(record)
        await trio.sleep(30)
        hub.partition([p.identity.peer_id for p in dead], [p.identity.peer_id for p in live])
        durations = []
        for number, sought in enumerate(live):
            seeker = random.choice([peer for peer in live if peer is not sought])
            for what in ("peer", "providers", "record", "store"):
                started = trio.current_time()
                if what == "peer":
                    assert await seeker.dht.find_peer(sought.identity.peer_id) is not None
                elif what == "providers":
                    assert len(await seeker.dht.find_providers(b"key %d" % number)) == 1
                elif what == "record":
                    assert await seeker.dht.get(records[number].dht_key) == records[number]
                else:
                    assert await sought.dht.provide(b"new %d" % number) >= 10
                durations.append(trio.current_time() - started)
        assert max(durations) < 3.0


async def test_connections_made_for_queries_close_when_idle(autojump_clock):
    """At 30 peers nobody keeps more than 12 connections."""
    async with running_peers(30, MemoryHub(Random(3), WAN)) as peers:
        for peer in peers:
            await peer.dht.provide(b"something")
        await trio.sleep(60)
        assert max(len(peer.network.connections()) for peer in peers) <= 12


async def test_a_client_asks_and_does_not_serve(autojump_clock):
    """SRS-NET: before others have dialled it, a peer answers no queries and enters no table."""
    hub = MemoryHub(Random(4))
    async with (
        running_peers(8, hub) as peers,
        running_peers(1, hub, DhtParams(dial_back_groups=3), first=100) as (client,),
    ):
        await client.network.connect(peers[0].identity.peer_id, peers[0].network.addresses)
        await client.dht.bootstrap()
        assert client.dht.statistics().mode == "client"
        assert await client.dht.find_peer(peers[7].identity.peer_id) is not None
        assert all(client.identity.peer_id not in [p.peer for p in peer.dht.known_peers(50)] for peer in peers)


async def test_the_cache_lets_a_peer_rejoin_without_its_bootstrap(autojump_clock, tmp_path):
    hub = MemoryHub(Random(5))
    async with running_peers(8, hub) as peers:
        async with running_peers(1, hub, first=50, cache_path=tmp_path / "peers.json") as (guest,):
            await guest.network.connect(peers[0].identity.peer_id, peers[0].network.addresses)
            assert await guest.dht.bootstrap() == 8
        async with running_peers(1, hub, first=50, cache_path=tmp_path / "peers.json") as (guest,):
            assert not guest.network.connections()
            assert await guest.dht.bootstrap() == 8


@pytest.mark.parametrize("steps", range(0, 60, 4))
async def test_a_cancelled_call_leaves_nothing_behind(autojump_clock, steps):
    """A call cancelled at any time frees its place, and the DHT goes on working."""
    async with running_peers(6, MemoryHub(Random(6), WAN), DEVNET) as peers:
        with trio.move_on_after(steps * 0.01):
            await peers[2].dht.provide(b"cancelled")
            await peers[2].dht.find_providers(b"cancelled")
        assert not peers[2].dht._waiting
        await trio.sleep(20)
        assert not peers[2].dht.core.operations
        assert not peers[2].dht._links
        assert await peers[2].dht.find_peer(peers[5].identity.peer_id) is not None


async def test_a_survey_looks_elsewhere_than_around_us(autojump_clock):
    """Forty peers, twenty of them Sybils that lie as near to the first as in a network of thousands."""
    victim = Contact(bytes(identity(0).peer_id)).key
    near = sorted(range(100, 4100), key=lambda n: Contact(bytes(identity(n).peer_id)).key ^ victim)[:22]
    hub = MemoryHub(Random(1), WAN)
    async with running_peers(30, hub) as peers, AsyncExitStack() as stack:
        assert 20 < (await peers[0].dht.survey()) < 60
        for number in near:
            network = hub.network(identity(number))
            await stack.enter_async_context(network.running())
            dht = await stack.enter_async_context(running_dht(network))
            await network.connect(peers[0].identity.peer_id, peers[0].network.addresses)
            await dht.bootstrap()
        assert peers[0].dht.statistics().network_size > 1000
        assert 20 < (await peers[0].dht.survey()) < 120
