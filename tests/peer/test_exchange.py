"""Whom the operator named as a way in is believed when it recommends others; whoever else answers has to earn it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import trio
from trio.testing import MockClock

from owm.peer import Peer
from tests.peer._peers import hub, peer


async def test_the_peers_that_the_operator_named_may_recommend_others(autojump_clock: MockClock) -> None:
    world = hub()
    named, other = peer(world, "named"), peer(world, "other")
    async with named.running(), other.running():
        address = f"{named.parts.network.addresses[0]}/p2p/{named.parts.identity.peer_id}"
        made = peer(world, "newcomer", via=named.parts.network.addresses)
        network = msgspec.structs.replace(made.parts.settings.network, bootstrap=(address,))
        settings = msgspec.structs.replace(made.parts.settings, network=network)
        async with Peer(replace(made.parts, settings=settings)).running() as newcomer:
            await other.parts.network.connect(made.parts.identity.peer_id, made.parts.network.addresses)
            await trio.sleep(10)
            core = newcomer.gossip.core
            scores = {who: core.score(who) for who in core.peers()}
    threshold = core.params.score.exchange_threshold
    assert scores[named.parts.identity.peer_id] >= threshold
    assert scores[other.parts.identity.peer_id] < threshold
