"""Peer exchange: who is turned away from a full mesh is told of others, and nobody can be made to dial at will."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.gossip import GossipParams, GossipService, PubSub, ScoreParams
from owm.gossip._core import GossipCore
from owm.gossip._core_state import Exchange, SendRpc
from owm.gossip._core_wire import Prune, Rpc
from owm.gossip._exchange import PeerExchange
from owm.identity import PeerId
from owm.net import Link, MemoryHub, MemoryNetwork, Network, open_peer_record, sign_peer_record
from tests.gossip._net import TOPIC, named
from tests.net.conformance import LIMITS, identity
from tests.tasks.world import TrioClock

NETWORK = "0123456789abcdef0123456789abcdef"
PARAMS = GossipParams(score=ScoreParams(colocation_weight=0.0))


def service(network: MemoryNetwork, number: int, trusted: Sequence[PeerId] = ()) -> GossipService:
    return GossipService(
        network, network_id=NETWORK, clock=TrioClock(), random=Random(number), params=PARAMS, trusted=trusted
    )


def pubsub(network: MemoryNetwork, number: int, trusted: Sequence[PeerId] = ()) -> PubSub:
    who = identity(1 + number)
    return PubSub(network, identity=who, clock=TrioClock(), random=Random(number), params=PARAMS, trusted=trusted)


@pytest.mark.parametrize("make", [service, pubsub])
@pytest.mark.parametrize("trusts", [True, False])
async def test_a_newcomer_at_a_full_mesh_finds_the_others_through_it_alone(
    autojump_clock: MockClock, make: object, trusts: bool
) -> None:
    """It knows one peer, whose mesh is full, and has no other way to learn of anybody."""
    hub = MemoryHub(Random(1), Link(latency=0.01))
    networks = [hub.network(identity(1 + number), limits=LIMITS) for number in range(20)]
    known, *others, newcomer = networks
    async with AsyncExitStack() as stack:
        made: list[GossipService | PubSub] = []
        for number, network in enumerate(networks):
            trusted = [known.peer_id] if network is newcomer and trusts else []
            await stack.enter_async_context(network.running())
            gossip = make(network, number, trusted)  # type: ignore[operator]
            made.append(await stack.enter_async_context(gossip.running()))
        for gossip in made[:-1]:
            gossip.subscribe(TOPIC)
        for number, other in enumerate(others):
            await other.connect(known.peer_id, known.addresses)
            for neighbour in others[number + 1 : number + 4]:
                await other.connect(neighbour.peer_id, neighbour.addresses)
        for _ in range(300):
            await trio.sleep(1)
            if len(made[0].core.mesh(TOPIC)) >= PARAMS.d_high:
                break
        made[-1].subscribe(TOPIC)
        await newcomer.connect(known.peer_id, known.addresses)
        await trio.sleep(60)
        found = {connection.peer for connection in newcomer.connections()} - {known.peer_id}
        if not trusts:
            assert found == set(), "a recommendation of who has earned nothing yet is not followed"
            return
        assert PARAMS.d_low <= len(found) <= 12
        assert found <= {network.peer_id for network in others}
        mesh = set(made[-1].core.mesh(TOPIC))
        assert len(mesh - {known.peer_id}) >= 2
        assert all(network.statistics().penalties == {} for network in networks)


class Told:
    """An exchange at ``us``, which is connected to ``source``, with a count of what is dialled."""

    def __init__(self, us: MemoryNetwork, source: Network) -> None:
        self.exchange = PeerExchange(us, Random(1))
        self.reached: list[PeerId] = []
        self.source = source

    def offer(self, *peers: tuple[bytes, bytes]) -> None:
        self.exchange.take(Exchange(self.source.peer_id, peers))


@asynccontextmanager
async def told(source_address: str | None = None) -> AsyncIterator[tuple[MemoryHub, MemoryNetwork, Told]]:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    us, source = hub.network(identity(1), limits=LIMITS), hub.network(identity(2), address=source_address)
    async with us.running(), source.running(), trio.open_nursery() as nursery:
        await us.connect(source.peer_id, source.addresses)
        made = Told(us, source)
        nursery.start_soon(made.exchange.run, made.reached.append)
        yield hub, us, made
        nursery.cancel_scope.cancel()


def entry(number: int, address: str) -> tuple[bytes, bytes]:
    return bytes(identity(number).peer_id), sign_peer_record(identity(number), 1, [address])


@pytest.mark.attack("G3")
async def test_however_many_are_recommended_few_are_dialled(autojump_clock: MockClock) -> None:
    async with told() as (_, us, made):
        before = us.statistics().dials
        for round_ in range(600):
            made.offer(*[entry(100 + round_ % 30 * 16 + n, f"/ip4/10.9.{round_ % 200}.{n}/tcp/1") for n in range(16)])
            await trio.sleep(1)
        assert us.statistics().dials - before <= 12 + 0.1 * 600 + 1


async def test_only_what_a_peer_signed_of_itself_is_believed(autojump_clock: MockClock) -> None:
    async with told() as (hub, us, made):
        friend = hub.network(identity(3))
        async with friend.running():
            name, record = entry(3, friend.addresses[0])
            forged = bytearray(record)
            forged[-1] ^= 1
            made.offer((name, bytes(forged)), (name, b""), (b"nobody", record), (bytes(identity(4).peer_id), record))
            await trio.sleep(30)
            assert not us.is_connected(friend.peer_id) and made.exchange.dialled == 0
            made.offer((name, record))
            await trio.sleep(30)
            assert us.is_connected(friend.peer_id) and made.reached == [friend.peer_id]
            made.offer((name, record), (bytes(us.peer_id), record))
            await trio.sleep(30)
            assert made.exchange.dialled == 1, "whom we know is not dialled"


async def test_a_peer_outside_cannot_have_us_dial_within_our_own_network(autojump_clock: MockClock) -> None:
    async with told("/ip4/8.8.8.8/tcp/1") as (_, _, made):
        made.offer(entry(3, "/ip4/192.168.1.1/tcp/80"), entry(4, "/ip4/127.0.0.1/tcp/22"))
        await trio.sleep(30)
        assert made.exchange.dialled == 0
        made.offer(entry(5, "/ip4/8.8.4.4/tcp/1"))
        await trio.sleep(30)
        assert made.exchange.dialled == 1


async def test_a_network_passes_on_what_its_peers_signed(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1))
    one, two = hub.network(identity(1)), hub.network(identity(2))
    async with one.running(), two.running():
        assert one.peer_record(two.peer_id) is None
        await one.connect(two.peer_id, two.addresses)
        for us, other in ((one, two), (two, one)):
            record = us.peer_record(other.peer_id)
            assert record is not None
            assert open_peer_record(record).addresses == other.addresses


def test_the_records_of_many_topics_go_in_rpcs_that_anybody_takes() -> None:
    """A peer that leaves a hundred full meshes at once is told of others by the megabyte."""
    names = [f"topic {number}" for number in range(100)]
    params = GossipParams(d=2, d_low=1, d_high=3, d_score=1, d_out=0)
    made: GossipCore[int] = GossipCore(0, params, Random(1), named, lambda _: bytes(4000))
    for name in names:
        made.subscribe(name, 0.0)
    for peer in range(1, 30):
        made.peer_up(peer, 0.0)
        made.receive_rpc(peer, Rpc(subscriptions=tuple((name, True) for name in names)), 0.0)
    effects = []
    for peer in range(1, 30):
        effects += made.receive_rpc(peer, Rpc(graft=tuple(names)), 1.0)
    sizes = [len(effect.rpc.encode()) for effect in effects if isinstance(effect, SendRpc)]
    assert max(sizes) <= made.params.max_rpc
    pruned = sum(len(effect.rpc.prune) for effect in effects if isinstance(effect, SendRpc))
    assert pruned == 26 * 100


def test_whom_to_ask_is_of_no_interest_while_the_mesh_is_large_enough() -> None:
    params = GossipParams(score=ScoreParams(exchange_threshold=0.0))
    made: GossipCore[int] = GossipCore(0, params, Random(1), named)
    made.subscribe(TOPIC, 0.0)
    for peer in range(1, 9):
        made.peer_up(peer, 0.0)
        made.receive_rpc(peer, Rpc(subscriptions=((TOPIC, True),), graft=(TOPIC,)), 0.0)
    offers = []
    for peer in range(1, 9):
        effects = made.receive_rpc(peer, Rpc(prune=(Prune(TOPIC, 60, ((b"peer", b"record"),)),)), 1.0)
        offers.append(sum(isinstance(effect, Exchange) for effect in effects))
    assert offers == [0, 0, 1, 1, 1, 1, 1, 1]
