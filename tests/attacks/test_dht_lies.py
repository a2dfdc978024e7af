"""Attacks on the DHT by saying what is not so: false addresses of others, false addresses of oneself, stores closed."""

from __future__ import annotations

import tracemalloc
from contextlib import AsyncExitStack
from random import Random

import pytest
import trio

from owm.clock import SystemClock
from owm.dht import DhtParams, KademliaDht
from owm.dht._core_types import Contact, Message, MessageType, SendQuery, key_of
from owm.dht._core_wire import WireError, decode_message, encode_message
from owm.dht._service import dht_protocol
from owm.net import FrameStream, Link, MemoryHub, NetworkLimits, group_of
from owm.net._core_frames import encode_frame
from owm.net.errors import StreamReset
from tests.dht._nets import NETWORK, identity, running_peers
from tests.dht._sim import PARAMS, Net, contact

FREE = DhtParams(dial_back_groups=0, query_rate=0)


def claims(number: int) -> Contact:
    """One of an attacker's ids, each of which claims an address in a /16 of its own."""
    return Contact(b"liar-%05d" % number, (f"/ip4/{20 + number // 200}.{number % 200}.1.1/tcp/1",))


@pytest.mark.attack("D1")
def test_ids_that_claim_a_subnet_each_count_with_the_one_that_they_come_from():
    """300 ids on one host, each saying that it listens in a /16 of its own: 3 enter the table, 2 a bucket."""
    core = Net().add(contact(0), FREE, group_of=group_of)
    seen = "/ip4/66.6.6.6/tcp/50000"
    for number in range(300):
        liar = claims(number)
        core.receive_query(liar.id, Message(MessageType.PING, sender=liar), float(number), seen)
        for query in core.drain():
            answer = Message(MessageType.FIND_NODE, query.message.key, sender=liar)
            core.receive_response(query.query_id, answer, float(number), seen)
    assert len(core.table) == 3
    assert max(core.table.bucket_sizes()) <= 2
    honest = contact(1, "/ip4/20.1.1.1/tcp/1")  # of a /16 that one of them had claimed
    core.verify(honest, 400.0)
    (query,) = core.drain()
    core.receive_response(query.query_id, Message(MessageType.FIND_NODE, sender=honest), 400.0, "/ip4/20.1.1.1/tcp/1")
    assert honest.key in core.table


@pytest.mark.attack("D1")
async def test_one_host_with_thirty_ids_that_spoof_their_addresses_takes_three_places(autojump_clock):
    """The same over a network: 30 peers of one /16 connect and greet, each as somebody from elsewhere."""
    hub = MemoryHub(Random(1))
    limits = NetworkLimits(max_per_subnet=100)
    async with AsyncExitStack() as stack:

        async def peer(number: int, address: str) -> KademliaDht:
            network = hub.network(identity(number), address=address, limits=limits)
            await stack.enter_async_context(network.running())
            dht = KademliaDht(
                network, network_id=NETWORK, clock=SystemClock(), random=Random(number), params=PARAMS, idle=5.0
            )
            return await stack.enter_async_context(dht.running())

        victim = await peer(0, "/ip4/77.7.7.7/tcp/9000")
        for number in range(1, 31):
            liar = await peer(number, f"/ip4/66.6.6.{number}/tcp/9000")
            liar.core.move(Contact(bytes(liar._network.peer_id), (f"/ip4/{20 + number}.1.1.1/tcp/9000",)))
            await liar._network.connect(victim._network.peer_id, victim._network.addresses)
            liar.core.verify(victim.core.contact, trio.current_time())
            liar._flush()
            await trio.sleep(1)
        await trio.sleep(60)
        assert victim.core.served >= 30
        assert len(victim.core.table) == 3


@pytest.mark.attack("D17")
def test_a_liar_cannot_have_another_subnet_blamed_for_what_it_does():
    """100 invalid records from one host that says it is in the victim's /16: the victim's neighbour still enters."""
    core = Net().add(contact(0), FREE, group_of=group_of)
    seen, framed = "/ip4/66.6.6.6/tcp/50000", "/ip4/77.7.7.7/tcp/1"
    for number in range(100):
        liar = contact(100 + number, framed)
        core.verify(liar, 0.0)
        core.start_get(b"/t/key", 0.0)
        while queries := [effect for effect in core.drain() if isinstance(effect, SendQuery)]:
            for query in queries:
                kind = query.message.type
                value = b"forged" if kind is MessageType.GET_VALUE else None
                core.receive_response(query.query_id, Message(kind, query.message.key, value, sender=liar), 0.0, seen)
            core.start_get(b"/t/key", 0.0)
    assert not core.reputation.admits(["ip4:66.6"], 0.0)
    assert core.reputation.admits(["ip4:77.7"], 0.0)


@pytest.mark.attack("D7")
def test_providers_of_a_key_are_counted_by_the_subnet_that_they_come_from():
    """300 ids on one host claim a /16 each: 16 are taken for one key, so the 17th honest provider finds room."""
    core = Net().add(contact(0), FREE, group_of=group_of)

    def provide(who: Contact, seen: str) -> bool:
        core.receive_query(who.id, Message(MessageType.ADD_PROVIDER, b"key", providers=(who,)), 0.0, seen)
        return who in core.server.providers.get(b"key", 1000, Random(1), 0.0)

    assert sum(provide(claims(number), "/ip4/66.6.6.6/tcp/50000") for number in range(300)) == 16
    honest = [contact(1 + n, f"/ip4/{30 + n}.1.1.1/tcp/1") for n in range(100)]
    assert all(provide(one, one.addresses[0]) for one in honest)


@pytest.mark.attack("D8")
def test_the_store_of_providers_is_not_closed_by_filling_it_with_keys():
    """8 identities with 1,024 keys each fill it: a key that we are near to finds room, one farther off than all not."""
    core = Net().add(contact(0), FREE, group_of=group_of)
    store = core.server.providers

    def provide(who: Contact, key: bytes) -> bool:
        core.receive_query(who.id, Message(MessageType.ADD_PROVIDER, key, providers=(who,)), 1.0, who.addresses[0])
        return who in store.get(key, 100, Random(1), 1.0)

    attackers = [contact(10 + n, f"/ip4/{66 + n}.6.6.6/tcp/1") for n in range(8)]
    for number in range(1024):
        for index, attacker in enumerate(attackers):
            provide(attacker, b"junk-%d-%d" % (index, number))
    assert len(store) == 8192
    keys = sorted((b"honest-%d" % n for n in range(400)), key=lambda key: key_of(key) ^ core.contact.key)
    honest = contact(1, "/ip4/20.1.1.1/tcp/1")
    assert all(provide(honest, key) for key in keys[:200])
    assert len(store) == 8192
    assert not provide(honest, keys[-1])
    # And identities are cheap, so what one subnet registers is bounded.
    crowded = Net().add(contact(0), FREE, group_of=group_of)
    for number in range(8192):
        who = contact(10 + number % 8, "/ip4/66.6.6.6/tcp/1")
        add = Message(MessageType.ADD_PROVIDER, b"junk-%d" % number, providers=(who,))
        crowded.receive_query(who.id, add, 1.0, "/ip4/66.6.6.6/tcp/1")
    assert len(crowded.server.providers) == 2048


@pytest.mark.attack("D2")
def test_whoever_connects_first_after_a_restart_does_not_keep_the_old_acquaintances_out():
    """40 attackers are connected, near us, and name only each other; 30 honest peers are remembered: we know both."""
    net = Net(seed=2)
    honest = net.grow(120, params=FREE)
    victim = net.add(contact(900), FREE)
    target = victim.contact.key
    crowd = [Contact(b"liar-%03d" % n, (f"/ip4/66.{n}.6.6/tcp/1",), target ^ ((n + 1) << 200)) for n in range(40)]

    def lie(asker: Contact, message: Message) -> Message:
        return Message(message.type, message.key, closer=tuple(net.random.sample(crowd, 20)))

    for liar in crowd:
        net.liars[liar.id] = lie
    victim.remember(core.contact for core in honest[:30])
    net.run(victim, victim.start_bootstrap(crowd, net.now))
    net.run_until(net.now + 10.0)
    known = {c.id for c in victim.table.contacts()}
    assert len(known & {core.contact.id for core in honest}) >= 20
    found = net.run(victim, victim.start_find_peer(honest[77].contact.id, net.now))
    assert found.peer == honest[77].contact


@pytest.mark.attack("D5")
def test_false_addresses_of_a_sought_peer_are_not_believed():
    """A tenth of the peers give every sought peer their own host's address: 80 lookups succeed, none with it."""
    net = Net(seed=8)
    cores = net.grow(200)

    def lie(asker: Contact, message: Message) -> Message:
        honest = cores[0].table.nearest(key_of(message.key), 19)
        sought = Contact(message.key, ("/ip4/66.6.6.6/tcp/666",))
        return Message(message.type, message.key, closer=(sought, *(c for c in honest if c.id != message.key)))

    for core in cores[:20]:
        net.liars[core.contact.id] = lie
    wrong = missing = 0
    for number in range(80):
        seeker, sought = cores[20 + number], cores[199 - number]
        found = net.run(seeker, seeker.start_find_peer(sought.contact.id, net.now)).peer
        missing += found is None
        wrong += found is not None and found.addresses != sought.contact.addresses
    assert (wrong, missing) == (0, 0)
    nowhere = net.run(cores[50], cores[50].start_find_peer(b"nobody at all", net.now))
    assert nowhere.peer is None


@pytest.mark.attack("D5")
def test_a_peer_is_found_though_the_nearest_to_it_all_lie():
    """The eight nearest give a false address, or keep silent about it: the others of the k nearest are asked then."""
    for lies in (True, False):
        net = Net(seed=11)
        cores = net.grow(120)
        sought, seeker = cores[60], cores[7]

        def lie(asker: Contact, message: Message, lies: bool = lies, sought: Contact = sought.contact) -> Message:
            false = (Contact(message.key, ("/ip4/66.6.6.6/tcp/666",)),) if lies and message.key == sought.id else ()
            return Message(message.type, message.key, closer=false)

        near = sorted((c for c in cores if c not in (sought, seeker)), key=lambda c: c.contact.key ^ sought.contact.key)
        for core in near[:8]:
            net.liars[core.contact.id] = lie
        seeker.table.remove(sought.contact.key)
        for core in near[:12]:
            seeker.table.heard(core.contact, net.now)
        found = net.run(seeker, seeker.start_find_peer(sought.contact.id, net.now)).peer
        assert found == sought.contact


@pytest.mark.attack("D5")
@pytest.mark.parametrize("false", ["/ip4/10.255.0.1/tcp/1", "black hole", "somebody else"])
async def test_false_addresses_hold_up_a_search_for_a_moment_at_most(autojump_clock, false):
    """Refused, silent, or of another peer: the sought peer is found at its own address, within 3 s."""
    hub = MemoryHub(Random(9), Link(latency=0.05))
    async with running_peers(12, hub) as peers:
        bystander, seeker, sought = peers[8:11]
        target = key_of(bytes(sought.identity.peer_id))
        others = [peer for peer in peers if peer not in (bystander, seeker, sought)]
        liars = sorted(others, key=lambda peer: peer.dht.core.contact.key ^ target)[:6]  # whom it asks first
        hole = hub.network(identity(500))
        async with hole.running():
            hub.partition([hole.peer_id], [seeker.identity.peer_id])
            address = {"black hole": hole.addresses[0], "somebody else": bystander.network.addresses[0]}.get(
                false, false
            )

            async def lie(stream) -> None:
                frames = FrameStream(stream, 1 << 18)
                while (data := await frames.receive()) is not None:
                    query = decode_message(data)
                    named = Contact(query.key, (address,))
                    await frames.send(encode_message(Message(query.type, query.key, closer=(named,))))

            for liar in liars:
                liar.network.handle(dht_protocol(NETWORK), lie)
            await trio.sleep(60)  # until the streams of before have ended
            seeker.dht.core.table.remove(target)
            await seeker.network.disconnect(sought.identity.peer_id)
            began = trio.current_time()
            found = await seeker.dht.find_peer(sought.identity.peer_id)
            assert found is not None and found.addresses == sought.network.addresses
            assert trio.current_time() - began < 3.0
            assert await seeker.dht.find_peer(identity(999).peer_id) is None


@pytest.mark.attack("D10")
def test_large_peers_in_messages_are_refused_or_at_least_not_kept():
    """1,000 messages that each name a peer of 15 KiB cost less than 4 MB of memory; one of 17 KiB is malformed."""

    def naming(number: int, size: int) -> bytes:
        peer = b"\x0a\x08" + number.to_bytes(8, "big") + b"\x1a" + _length(size) + bytes(size)
        return b"\x08\x04\x42" + _length(len(peer)) + peer

    decode_message(naming(0, 15_000))
    tracemalloc.start()
    try:
        for number in range(1000):
            assert len(decode_message(naming(number, 15_000)).closer) == 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4_000_000
    with pytest.raises(WireError):
        decode_message(naming(1, 17_000))


def _length(value: int) -> bytes:
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))


@pytest.mark.attack("D10")
async def test_a_query_beyond_the_quota_is_not_even_read(autojump_clock):
    """The fourth query of a peer that may send three costs it the excess, although it is no message at all."""
    params = DhtParams(dial_back_groups=0, query_rate=0.1, query_burst=2)
    async with running_peers(2, MemoryHub(Random(1)), params) as (attacker, victim):
        await trio.sleep(60)
        await attacker.network.connect(victim.identity.peer_id, victim.network.addresses)
        stream = await attacker.network.open_stream(victim.identity.peer_id, dht_protocol(NETWORK))
        ping = encode_frame(encode_message(Message(MessageType.PING)))
        await stream.send(3 * ping + encode_frame(b"\xff" * 1000))
        with pytest.raises(StreamReset):
            while True:
                await stream.receive()
        assert list(victim.network.statistics().penalties) == ["kad-dht: more queries than the quota allows"]
