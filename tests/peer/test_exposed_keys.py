"""Which keys a peer stores in their whole region, against Sybils that crowd a key."""

from __future__ import annotations

from random import Random

import msgspec
from trio.testing import MockClock

from owm.config import NodeSettings, Settings, load_constitution
from owm.dht import provider_key
from owm.directory._core_turns import topic_key, turn_at
from owm.directory.joining import Lead
from owm.hardware import Hardware
from owm.identity import Identity
from owm.model.testing import StandInEngine
from owm.net import MemoryHub
from owm.peer import Parts, Peer, limits_of
from owm.store import Store
from tests.peer._peers import address, hub, peer, running, until
from tests.tasks.world import TrioClock


def public_peer(net: MemoryHub, number: int, via: str | None) -> Peer:
    """A peer of a network that is no devnet, in a subnet of its own."""
    devnet = load_constitution("devnet")
    constitution = msgspec.structs.replace(
        devnet, dht=msgspec.structs.replace(devnet.dht, exempt_private_groups=False, require_dial_back=False)
    )
    identity = Identity(Random(number).randbytes(32))
    settings = Settings(node=NodeSettings(roles=("worker",)))
    limits = limits_of(settings, constitution)

    async def told() -> list[Lead]:
        return [Lead(None, via)] if via else []

    return Peer(
        Parts(
            identity=identity,
            settings=settings,
            constitution=constitution,
            network=net.network(identity, address=f"/ip4/77.{number}.0.1/tcp/9000", limits=limits),
            store=Store(None, inline=True),
            clock=TrioClock(0.0),
            random=Random(f"{number} random"),
            secrets=Random(f"{number} secrets"),
            hardware=Hardware((), 16_000),
            engine=StandInEngine(),
            sources=[("settings", told)] if via else [],
        )
    )


def regions(of: Peer) -> dict[bytes, bool]:
    """Which of a peer's keys it provides in their region."""
    return {key: upkeep.region for key, upkeep in of.dht.core.provided.items()}


async def test_keys_that_whole_roles_are_found_by_are_stored_in_their_region(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(public_peer(net, 1, None))
        others = [await peers.start(public_peer(net, n, address(first))) for n in range(2, 6)]
        await until(lambda: all(len(regions(one)) >= 6 and one.gossip.core.subscriptions() for one in others))
        for one in others:
            found = regions(one)
            shard = one.parts.identity.public_key[-1]
            assert found[provider_key(f"role:worker:{one.source.tier}:{shard:02x}".encode())]
            turn = turn_at(one.parts.clock.time())
            topics = [provider_key(topic_key(topic, turn)) for topic in one.manifests._topics]
            provided = [key for key in topics if key in found]
            assert provided and all(found[key] for key in provided)
            assert not any(found[provider_key(f"task:{kind}".encode())] for kind in one.source.task_types)
        await until(lambda: others[0].dht.statistics().providers > 0)


async def test_a_devnet_does_without(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first"))
        second = await peers.start(peer(net, "second", via=[address(first)]))
        await until(lambda: len(regions(second)) >= 4)
        assert not any(regions(second).values())
