"""Attacks D1 to D17 on the DHT's core and service, each carried out on the real classes."""

from __future__ import annotations

import contextlib
import hashlib
from random import Random

import pytest
import trio

from owm.dht._core_guards import check_proof, solve_puzzle
from owm.dht._core_server import QueryRefused
from owm.dht._core_types import KEY_BITS, Contact, DhtParams, Message, MessageType, key_of
from owm.dht._core_wire import MAX_MESSAGE, encode_message
from owm.dht._service import dht_protocol
from owm.net import MemoryHub, group_of
from owm.net._core_frames import encode_frame
from owm.net.errors import StreamReset
from tests.dht._nets import NETWORK, identity, running_peers
from tests.dht._sim import PARAMS, Net, contact


def near(target: int, number: int, rank: int, address: str | None = None) -> Contact:
    """A Sybil that has ground its id: its key lies ``rank`` steps of a 2**-20 from the target."""
    name = b"sybil-%05d" % number
    return Contact(name, (address or f"/ip4/{20 + number // 250}.{number % 250}.1.1/tcp/1",), target ^ (rank << 230))


@pytest.mark.attack("D1")
def test_ids_from_one_subnet_take_three_places_of_a_table():
    """A thousand ids from one /16 answer every query: 3 enter the table, 2 a bucket."""
    core = Net().add(contact(0), group_of=group_of)
    for number in range(1000):
        core.table.heard(contact(number + 1, f"/ip4/203.0.{number >> 8}.{number & 255}/tcp/1"), 0.0)
    assert len(core.table) == 3
    assert max(core.table.bucket_sizes()) <= 2
    for number in range(100):
        core.table.heard(contact(2000 + number, f"/ip4/11.{number}.0.1/tcp/1"), 0.0)
    onions = sum(core.table.heard(contact(3000 + number, "/onion3/" + "a" * 56 + ":1"), 0.0) for number in range(100))
    assert 3 <= onions <= len(core.table) // 5 + 1


@pytest.mark.attack("D2")
def test_an_attacker_with_two_hosts_does_not_fill_the_memory_that_survives_a_restart():
    """200 attackers in two /16s against 60 honest peers: at most 6 of what is exported, and lookups work after."""
    net = Net()
    honest = net.grow(60, group_of=group_of)
    victim = net.add(contact(900), group_of=group_of)
    for number in range(200):
        victim.table.heard(contact(5000 + number, f"/ip4/{66 + number % 2}.6.6.{number}/tcp/1"), 0.0)
    for core in honest:
        victim.table.heard(core.contact, 1.0)
    kept = victim.export_peers()
    hostile = [c for c in kept if c.key not in {core.contact.key for core in honest}]
    assert len(hostile) <= 6
    assert len(kept) - len(hostile) >= 30
    reborn = Contact(victim.contact.id, victim.contact.addresses)
    again = net.add(reborn, group_of=group_of)
    again.remember(kept)
    net.run(again, again.start_bootstrap([], net.now))
    found = net.run(again, again.start_find_peer(honest[7].contact.id, net.now))
    assert found.peer is not None and found.peer.id == honest[7].contact.id


def sybil_net(active: bool) -> tuple[Net, list, bytes]:
    """300 peers; a fifth are Sybils each in a subnet of its own, 45 of them nearest to the key."""
    net = Net(seed=3)
    honest = net.grow(240)
    key = b"role:worker:t1:00"
    target = key_of(key)
    crowd = [near(target, number, number + 1) for number in range(45)]
    crowd += [Contact(b"sybil-%05d" % n, (f"/ip4/30.{n}.1.1/tcp/1",)) for n in range(45, 60)]

    def lie(asker: Contact, message: Message) -> Message | None:
        if message.type is MessageType.ADD_PROVIDER:
            return None
        wanted = key_of(message.key)
        closer = sorted(crowd, key=lambda c: c.key ^ wanted)[:20] if active else honest[0].table.nearest(wanted, 20)
        return Message(message.type, message.key, closer=tuple(closer))

    for sybil in crowd:
        net.liars[sybil.id] = lie
    for core in honest:
        for sybil in crowd:
            core.table.heard(sybil, net.now)
        for number in range(8):  # what ordinary refreshes have taught about the network's size
            sample = key_of(b"refresh %d" % number)
            core.size.note(sample, core.table.nearest(sample, 20))
    return net, honest, key


def share_found(active: bool, region: bool) -> float:
    """Stores a record against the Sybils; returns the share of 60 honest peers that find it."""
    net, honest, key = sybil_net(active)
    net.run(honest[0], honest[0].start_provide(key, net.now, region=region))
    found = 0
    for core in honest[1:61]:
        providers = net.run(core, core.start_find_providers(key, 20, net.now, region=region)).providers
        found += [c.id for c in providers] == [honest[0].contact.id]
    return found / 60


@pytest.mark.attack("D3")
@pytest.mark.slow
def test_a_record_survives_45_silent_sybils_nearest_to_its_key():
    """They take every record and give none: of ordinary searches most fail, of those of the region at most 5 %."""
    assert share_found(active=False, region=True) >= 0.95
    assert share_found(active=False, region=False) <= 0.6


@pytest.mark.attack("D4")
@pytest.mark.slow
def test_a_record_is_found_while_active_sybils_name_only_each_other():
    """20 % Sybils, the 45 nearest to the key among them, answer with their own kind: at least 95 % find the record."""
    assert share_found(active=True, region=True) >= 0.95
    assert share_found(active=True, region=False) <= 0.6


@pytest.mark.attack("D5")
def test_poisoned_answers_do_not_stop_a_lookup_nor_enter_a_table():
    """A fifth of the peers name peers that do not exist, nearer to the target than all others."""
    net = Net(seed=5)
    cores = net.grow(150)
    invented = 0

    def lie(asker: Contact, message: Message) -> Message | None:
        nonlocal invented
        invented += 1
        target = key_of(message.key)
        ghosts = tuple(
            Contact(b"ghost-%d-%d" % (invented, n), ("/ip4/9.9.9.9/tcp/1",), target ^ (n + 1)) for n in range(20)
        )
        return None if message.type is MessageType.ADD_PROVIDER else Message(message.type, message.key, closer=ghosts)

    assert net.run(cores[0], cores[0].start_put(b"/t/key", b"ok:1", net.now)).stored == 20
    for core in cores[1:31]:
        net.liars[core.contact.id] = lie
    found = sum(net.run(c, c.start_get(b"/t/key", net.now)).value == b"ok:1" for c in cores[31:131])
    assert found >= 97
    assert not any(c.id.startswith(b"ghost") for core in cores for c in core.table.contacts())


@pytest.mark.attack("D6")
def test_an_id_without_the_work_does_not_enter_a_table():
    """Where the network asks for the puzzle, none of 50 servers without it enters, and one with it does."""
    params = DhtParams(dial_back_groups=0, puzzle_bits=10)
    core = Net().add(contact(0), params, network="net")
    for number in range(1, 51):
        cheap = contact(number)
        core.receive_query(cheap.id, Message(MessageType.PING, sender=cheap, proof=b"\0" * 8), 0.0)
    assert not core.drain()
    honest = contact(99)
    proof = solve_puzzle("net", honest.id, 10)
    core.receive_query(honest.id, Message(MessageType.PING, sender=honest, proof=proof), 0.0)
    (query,) = core.drain()
    core.receive_response(query.query_id, Message(MessageType.FIND_NODE, sender=honest, proof=proof), 0.1)
    assert core.table.contacts() == [honest]
    assert not check_proof("other net", honest.id, proof, 10)


@pytest.mark.attack("D7")
def test_flooding_a_key_with_providers_does_not_displace_the_old_ones():
    """10,000 ids, from one subnet and from many, provide the key of an honest peer: it stays, and memory is bounded."""
    core = Net().add(contact(0), DhtParams(dial_back_groups=0, query_rate=0), group_of=group_of)
    honest = contact(1)

    def provide(who: Contact, now: float) -> None:
        core.receive_query(who.id, Message(MessageType.ADD_PROVIDER, b"key", providers=(who,)), now)

    provide(honest, 0.0)
    for number in range(5000):
        provide(contact(10 + number, f"/ip4/66.6.{number >> 8}.{number & 255}/tcp/1"), 1.0)
    assert len(core.server.providers) <= 17
    for number in range(5000):
        provide(contact(9000 + number, f"/ip4/{1 + number % 200}.{number // 200}.1.1/tcp/1"), 2.0)
    provide(honest, 3.0)
    assert len(core.server.providers) == 256
    assert honest in core.server.providers.get(b"key", 256, Random(1), 4.0)
    with pytest.raises(QueryRefused):  # and nobody speaks for another
        core.receive_query(contact(2).id, Message(MessageType.ADD_PROVIDER, b"x", providers=(honest,)), 3.0)


@pytest.mark.attack("D8")
def test_filling_the_store_stays_within_bounds_and_ends_with_the_records_life():
    """One peer gets 512 places whatever it sends, all together 2000 here, and a day later all is free again."""
    core = Net().add(contact(0), DhtParams(dial_back_groups=0, query_rate=0, max_records=2000))

    def flood(senders: int, values: int) -> None:
        for number in range(values):
            message = Message(MessageType.PUT_VALUE, b"/t/%d" % number, b"ok:1")
            with contextlib.suppress(QueryRefused):
                core.receive_query(b"peer-%d" % (number % senders), message, 0.0)

    flood(1, 1000)
    assert len(core.server.records) == 512
    flood(10, 6000)
    assert len(core.server.records) == 2000
    assert core.server.records.get(b"/t/1", 90_000.0) is None
    core.server.records.sweep(90_000.0)
    assert len(core.server.records) == 0


@pytest.mark.attack("D9")
def test_own_records_and_registrations_are_never_evicted():
    """A full store of others' records leaves our own record and registration served."""
    core = Net().add(contact(0), DhtParams(dial_back_groups=0, query_rate=0, max_records=50, max_provided_keys=50))
    core.start_put(b"/t/mine", b"ok:9", 0.0)
    core.start_provide(b"my key", 0.0)
    for number in range(500):
        who = contact(1 + number)
        core.receive_query(who.id, Message(MessageType.ADD_PROVIDER, b"k%d" % number, providers=(who,)), 1.0)
        with contextlib.suppress(QueryRefused):
            core.receive_query(who.id, Message(MessageType.PUT_VALUE, b"/t/%d" % number, b"ok:1"), 1.0)
    with pytest.raises(QueryRefused):
        core.receive_query(b"peer-x", Message(MessageType.PUT_VALUE, b"/t/mine", b"ok:1"), 1.0)
    assert core.receive_query(b"peer-x", Message(MessageType.GET_VALUE, b"/t/mine"), 1e6).value == b"ok:9"
    answer = core.receive_query(b"peer-x", Message(MessageType.GET_PROVIDERS, b"my key"), 1e6)
    assert answer.providers == (core.contact,)


@pytest.mark.attack("D10")
async def test_oversized_and_invalid_messages_reset_the_stream_and_cost_the_sender(autojump_clock):
    """A frame that announces 1 GiB, an invalid record and a key of 1 KiB: each resets the stream, nothing is stored."""
    async with running_peers(2, MemoryHub(Random(1))) as (attacker, victim):
        await attacker.network.connect(victim.identity.peer_id, victim.network.addresses)
        bad = [
            (1 << 30).to_bytes(5, "little").replace(b"\0\0\0\x40\0", b"\x80\x80\x80\x80\x04"),
            encode_frame(encode_message(Message(MessageType.PUT_VALUE, b"/owm/manifest/x", b"rubbish"))),
            encode_frame(encode_message(Message(MessageType.FIND_NODE, b"k" * 1024))),
            encode_frame(b"\xff" * 100),
        ]
        for data in bad:
            await attacker.network.connect(victim.identity.peer_id, victim.network.addresses)
            stream = await attacker.network.open_stream(victim.identity.peer_id, dht_protocol(NETWORK))
            await stream.send(data)
            with trio.fail_after(5), pytest.raises(StreamReset):
                await stream.receive()
        assert victim.dht.statistics().records == 0
        assert sum(victim.network.statistics().penalties.values()) >= 3
        assert MAX_MESSAGE < 1 << 20


@pytest.mark.attack("D11")
def test_silent_peers_do_not_hold_up_a_lookup():
    """Every third peer is silent: all lookups end, in under 3 s."""
    net = Net(seed=11)
    cores = net.grow(90)
    net.dead = {core.contact.id for core in cores[60:]}
    slowest = 0.0
    for number in range(50):
        seeker, sought = cores[number], cores[59 - number] if number != 59 - number else cores[0]
        result = net.run(seeker, seeker.start_find_peer(sought.contact.id, net.now))
        assert result.peer is not None
        slowest = max(slowest, result.duration)
    assert slowest < 3.0


@pytest.mark.attack("D12")
def test_keys_and_distances_are_those_of_go_libp2p():
    """Keys and ids are hashed with SHA-256 before distances are taken, and the first differing bit is the bucket."""
    assert key_of(b"hello").to_bytes(32, "big") == hashlib.sha256(b"hello").digest()
    assert key_of(b"") >> 224 == 0xE3B0C442  # the empty string's SHA-256, as printed in FIPS 180-4 examples
    core = Net().add(contact(0))
    flipped = core.contact.key ^ (1 << (KEY_BITS - 1 - 7))
    assert core.table.bucket_index(flipped) == 7
    assert core.table.bucket_index(core.contact.key) == 256
    assert bytes(identity(1).peer_id)[:2] == b"\x00\x24"


@pytest.mark.attack("D13")
def test_two_halves_that_lost_each_other_merge():
    """After a partition in which each half has evicted the other, merge probes make every lookup work across it."""
    params = DhtParams(dial_back_groups=0, merge_interval=120.0)
    net = Net(seed=13)
    cores = net.grow(40, params=params)
    left = {core.contact.id for core in cores[:20]}
    net.blocked = lambda a, b: (a in left) != (b in left)
    for number in range(25):
        for core in cores:
            net.run(core, core.start_find_peer(b"nobody %d" % number, net.now))
    known = [sum((c.id in left) != (core.contact.id in left) for c in core.table.contacts()) for core in cores]
    assert sum(known) < 20  # of 800: they have forgotten each other
    net.blocked = lambda a, b: False
    net.run_until(net.now + 600.0)
    for seeker, sought in zip(cores[:20], cores[20:], strict=True):
        result = net.run(seeker, seeker.start_find_peer(sought.contact.id, net.now))
        assert result.peer is not None and result.peer.id == sought.contact.id
        assert net.run(sought, sought.start_find_peer(seeker.contact.id, net.now)).peer is not None
    across = [sum((c.id in left) != (core.contact.id in left) for c in core.table.contacts()) for core in cores]
    assert min(across) >= 5
    assert sum(core.splits for core in cores) >= 1


@pytest.mark.attack("D14")
async def test_a_peer_rejoins_when_all_bootstraps_are_dead(autojump_clock, tmp_path):
    """The first three peers, its only bootstraps, are gone: it comes back through its cache."""
    hub = MemoryHub(Random(14))
    path = tmp_path / "peers.json"
    async with running_peers(10, hub) as peers:
        async with running_peers(1, hub, first=50, cache_path=path) as (guest,):
            await guest.network.connect(peers[0].identity.peer_id, peers[0].network.addresses)
            await guest.dht.bootstrap()
        dead = [peer.identity.peer_id for peer in peers[:3]]
        hub.partition(dead, [identity(50).peer_id])
        async with running_peers(1, hub, first=50, cache_path=path) as (guest,):
            assert await guest.dht.bootstrap() == 7
            assert await guest.dht.find_peer(peers[8].identity.peer_id) is not None


@pytest.mark.attack("D15")
def test_a_peer_that_nobody_could_dial_does_not_serve():
    """Dialled by 50 peers of two groups it stays a client; the third group makes it a server."""
    core = Net().add(contact(0), DhtParams(dial_back_groups=3))
    for number in range(50):
        core.dialled_back(group_of(f"/ip4/20.{number % 2}.1.1/tcp/1"))
    with pytest.raises(QueryRefused):
        core.receive_query(b"peer-x", Message(MessageType.PING), 0.0)
    core.table.heard(contact(1), 0.0)
    core.start_find_peer(b"peer-y", 0.0)
    assert all(effect.message.sender is None for effect in core.drain())
    core.dialled_back(group_of("/ip4/20.2.1.1/tcp/1"))
    assert core.receive_query(b"peer-x", Message(MessageType.PING), 0.0).type is MessageType.PING


@pytest.mark.attack("D16")
def test_an_old_record_is_not_stored_over_a_newer_even_after_that_has_expired():
    """Replays of sequence 1 are refused by all 20 holders of sequence 2, then and after its expiry."""
    net = Net(seed=16)
    cores = net.grow(25, params=DhtParams(dial_back_groups=0, record_ttl=100.0, republish_interval=1e9))
    assert net.run(cores[0], cores[0].start_put(b"/t/key", b"ok:2", net.now, own=False)).stored == 20
    replay = net.run(cores[9], cores[9].start_put(b"/t/key", b"ok:1", net.now, own=False))
    assert replay.stored <= 4  # peers that never held the key
    net.run_until(net.now + 150.0)
    assert net.run(cores[9], cores[9].start_put(b"/t/key", b"ok:1", net.now, own=False)).stored <= 4


@pytest.mark.attack("D17")
def test_changing_ids_from_one_subnet_closes_the_table_to_it():
    """194 ids in a week, each replacing the last: 16 a day enter at first, then hardly any."""
    core = Net().add(contact(0), PARAMS, group_of=group_of)
    entered = 0
    for number in range(194):
        now = number * 3600.0 / 8  # a day's worth of hammering
        rotating = contact(100 + number, "/ip4/66.6.6.6/tcp/1")
        core.verify(rotating, now)
        for effect in core.drain():
            core.receive_response(effect.query_id, Message(MessageType.FIND_NODE, sender=rotating), now)
        entered += rotating.key in core.table
        core.table.remove(rotating.key)
    assert entered <= 30
    fresh = contact(1, "/ip4/67.6.6.6/tcp/1")
    core.verify(fresh, now)
    for effect in core.drain():
        core.receive_response(effect.query_id, Message(MessageType.FIND_NODE, sender=fresh), now)
    assert fresh.key in core.table
