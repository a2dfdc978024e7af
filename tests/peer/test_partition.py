"""What a peer says of others while the network between them is cut one way: known is not reached."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from owm.directory.shards import shard_of
from owm.identity import PeerId
from owm.peer import Peer
from owm.roles._local import LocalViews
from tests.peer._peers import address, hub, peer, running, until


def state(seen_by: Peer, other: Peer) -> str:
    rows = LocalViews(seen_by).views()["peers"]({})
    return next((row["state"] for row in rows if row["peer_id"] == str(other.parts.identity.peer_id)), "unknown")


def relays(relay: Peer, issuer: PeerId) -> bool:
    return any(topic.endswith(f"/manifest/{shard_of(issuer):02x}") for topic in relay.gossip.core.subscriptions())


@pytest.mark.attack("T14")
async def test_a_worker_behind_a_one_way_partition_is_discovered_and_not_connected(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ("gateway",)))
        via = [address(gateway)]
        other = await peers.start(peer(net, "other", via=via))
        await until(lambda: bool(other.gossip.core.subscriptions()))
        candidates = (peer(net, str(number), via=via) for number in range(100))
        cut_off = await peers.start(next(c for c in candidates if relays(other, c.parts.identity.peer_id)))
        await until(lambda: state(gateway, cut_off) == state(gateway, other) == "usable")
        await until(lambda: other.parts.network.is_connected(cut_off.parts.identity.peer_id))

        ids = [{who.parts.identity.peer_id} for who in (cut_off, gateway)]
        net.partition(*ids, one_way=True)
        assert await until(lambda: state(gateway, cut_off) == "discovered") <= 31
        # Its manifests go on arriving by way of the other worker, longer than one lives: known, and said not reached.
        for _ in range(10):
            await trio.sleep(30)
            assert (state(gateway, cut_off), state(gateway, other)) == ("discovered", "usable")

        net.heal()
        await until(lambda: state(gateway, cut_off) == "usable", within=700)
