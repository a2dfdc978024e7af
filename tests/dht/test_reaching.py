"""Who serves, who is found, and what our own limits may not do to others."""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random

import trio

from owm.dht import DhtParams
from owm.dht._service import dht_protocol
from owm.net import Link, MemoryHub, NetworkLimits
from tests.dht._nets import NETWORK, identity, running_dht, running_peers

WAN = Link(latency=0.05, jitter=0.01)


async def test_a_peer_with_few_streams_to_spare_closes_unused_ones_and_blames_nobody(autojump_clock):
    """Six streams for thirty peers: every search succeeds, and nobody loses its place in the table for it."""
    hub = MemoryHub(Random(1), WAN)
    async with running_peers(29, hub) as peers:
        network = hub.network(identity(90))
        async with network.running(), running_dht(network, most_links=6) as dht:
            for peer in peers:
                dht.core.table.heard(peer.dht.core.contact, 0.0)
            missed = []
            for number, sought in enumerate(peers):
                await dht.find_providers(b"key %d" % number)
                if await dht.find_peer(sought.identity.peer_id) is None:
                    missed.append(number)
                if len(dht._links) > 6:
                    missed.append(-1)
            assert missed == []
            assert dht.core.sent > 100
            assert len(dht.core.table) == 29


async def test_connections_that_our_own_limit_forbids_cost_nobody_its_place_in_the_table(autojump_clock):
    """Room for four connections, all of them kept: the fifteen others stay in the table."""
    hub = MemoryHub(Random(2), WAN)
    async with running_peers(16, hub) as peers:
        limits = NetworkLimits(
            exempt_local=True, max_connections=4, max_inbound=4, high_water=4, low_water=4, reserved_protected=0
        )
        network = hub.network(identity(80), limits=limits)
        async with network.running(), running_dht(network) as dht:
            for peer in peers:
                dht.core.table.heard(peer.dht.core.contact, 0.0)
            for peer in peers[:4]:
                await network.connect(peer.identity.peer_id, peer.network.addresses)
                network.protect(peer.identity.peer_id, "test")
            for number in range(6):
                await dht.provide(b"key %d" % number)
            assert dht.core.failed > 20
            assert len(dht.core.table) == 16


async def test_a_client_does_not_say_that_it_speaks_the_protocol_until_it_serves(autojump_clock):
    """Foreign peers would take it for a server. Three peers of different subnets that dial it make it one."""
    hub = MemoryHub(Random(4))
    protocol = dht_protocol(NETWORK)
    client = hub.network(identity(100), address="/ip4/10.9.0.1/tcp/9000")
    async with client.running(), running_dht(client, DhtParams()) as dht:
        for number in range(4):
            visitor = hub.network(identity(200 + number), address=f"/ip4/10.{20 + number}.0.1/tcp/9000")
            assert dht.statistics().mode == ("server" if number == 3 else "client")
            async with visitor.running():
                await visitor.connect(client.peer_id, client.addresses)
                await trio.sleep(1)
                connection = visitor.connection(client.peer_id)
                assert connection is not None
                assert (protocol in connection.protocols) == (number >= 2)


async def test_connections_through_relays_do_not_show_that_we_can_be_dialled(autojump_clock):
    hub = MemoryHub(Random(5))
    client = hub.network(identity(100), address="/ip4/10.9.0.1/tcp/9000")
    async with client.running(), running_dht(client, DhtParams(dial_back_groups=1)) as dht:
        relayed = hub.network(identity(101), address="/ip4/10.20.0.1/tcp/9000/p2p-circuit")
        async with relayed.running():
            await relayed.connect(client.peer_id, client.addresses)
            await trio.sleep(1)
        assert dht.statistics().mode == "client"
        direct = hub.network(identity(102), address="/ip4/10.21.0.1/tcp/9000")
        async with direct.running():
            await direct.connect(client.peer_id, client.addresses)
            await trio.sleep(1)
        assert dht.statistics().mode == "server"


async def test_a_client_is_found_through_the_peers_that_it_is_connected_to(autojump_clock):
    hub = MemoryHub(Random(6), WAN)
    async with running_peers(16, hub) as peers:
        client = hub.network(identity(100))
        async with client.running(), running_dht(client, DhtParams()) as dht:
            for peer in peers[:4]:
                await client.connect(peer.identity.peer_id, peer.network.addresses)
                client.protect(peer.identity.peer_id, "test")
            await dht.bootstrap()
            await trio.sleep(30)
            assert dht.statistics().mode == "client"
            seekers = [peer for peer in peers if not peer.network.is_connected(client.peer_id)]
            assert len(seekers) >= 4
            for seeker in seekers:
                found = await seeker.dht.find_peer(client.peer_id)
                assert found is not None and found.addresses == client.addresses
                assert client.peer_id not in [known.peer for known in seeker.dht.known_peers(50)]


async def test_a_network_that_starts_with_clients_only_comes_to_serve(autojump_clock):
    """Eight peers of eight subnets, none of which was dialled yet: joined in a row, they come to serve."""
    hub = MemoryHub(Random(7), WAN)
    async with AsyncExitStack() as stack:
        networks = [hub.network(identity(n), address=f"/ip4/10.{n}.0.1/tcp/9000") for n in range(1, 9)]
        dhts = []
        for network in networks:
            await stack.enter_async_context(network.running())
            dhts.append(await stack.enter_async_context(running_dht(network, DhtParams())))
        for number, network in enumerate(networks):
            for other in networks[:number]:
                await network.connect(other.peer_id, other.addresses)
        for _ in range(2):
            for dht in dhts:
                await dht.bootstrap()
            await trio.sleep(30)
        modes = [dht.statistics().mode for dht in dhts]
        assert modes[:5] == ["server"] * 5
        assert all(len(dht.core.table) >= 4 for dht in dhts)
