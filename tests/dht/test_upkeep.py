"""What peers keep over time: own records, registrations, the memory of peers; and what regions cost."""

from __future__ import annotations

from random import Random

import pytest

from owm.clock import ManualClock
from owm.dht._core_guards import PeerMemory
from owm.dht._core_types import Contact, DhtParams, Message, MessageType, SendQuery, Validity, key_of
from owm.dht._validators import RecordValidator
from owm.net import group_of
from owm.records import CapabilityManifest, sign_record
from tests.dht._nets import NETWORK, identity
from tests.dht._sim import PARAMS, Net, contact


def test_an_own_record_that_has_expired_is_not_served_and_costs_nobody_anything():
    net = Net()
    cores = net.grow(30)
    owner, reader = cores[0], cores[9]
    net.run(owner, owner.start_put(b"/t/key", b"ok:1", net.now))
    net.expired.add(b"ok:1")
    assert owner.receive_query(b"peer-x", Message(MessageType.GET_VALUE, b"/t/key"), net.now).value is None
    assert net.run(reader, reader.start_get(b"/t/key", net.now)).value is None
    assert net.run(owner, owner.start_get(b"/t/key", net.now)).value is None
    assert net.blamed == []
    assert len(reader.table) == 29


def test_holders_of_an_expired_record_are_not_blamed_and_those_of_a_forged_one_are():
    net = Net()
    cores = net.grow(30)
    reader = cores[9]
    old, forger = cores[0].contact.id, cores[1].contact.id
    net.expired.add(b"ok:1")
    net.liars[old] = lambda asker, message: Message(message.type, message.key, b"ok:1")
    net.liars[forger] = lambda asker, message: Message(message.type, message.key, b"forged")
    for number in range(20):
        net.run(reader, reader.start_get(b"/t/%d" % number, net.now))
    assert set(net.blamed) == {forger}


def test_a_newer_version_held_for_others_is_served_before_our_own():
    """Two machines of one owner: the one that was off serves what the other has stored meanwhile."""
    core = Net().grow(3)[0]
    core.start_put(b"/t/key", b"ok:1", 0.0)
    core.receive_query(b"peer-x", Message(MessageType.PUT_VALUE, b"/t/key", b"ok:2"), 0.0)
    assert core.receive_query(b"peer-x", Message(MessageType.GET_VALUE, b"/t/key"), 0.0).value == b"ok:2"
    core.start_put(b"/t/key", b"ok:3", 0.0)
    assert core.receive_query(b"peer-x", Message(MessageType.GET_VALUE, b"/t/key"), 0.0).value == b"ok:3"


def test_the_validator_tells_expired_records_from_forged_ones():
    clock = ManualClock()
    validator = RecordValidator(NETWORK, clock)
    fresh = RecordValidator(NETWORK, clock)  # one that sees the record for the first time when it is old
    manifest = CapabilityManifest(sequence=int(clock.time() * 1000), roles=(), tier="t1", addresses=(), nonce=bytes(16))
    record = sign_record(identity(1), manifest, NETWORK)
    assert validator(record.dht_key, record.envelope) == Validity(record.sequence, 180.0)
    clock.advance(181.0)
    assert validator(record.dht_key, record.envelope).expired
    assert validator.open(record.dht_key, record.envelope) is None
    clock.advance(3 * 3600.0)
    assert fresh(record.dht_key, record.envelope).expired
    assert fresh(record.dht_key, record.envelope[:-1] + b"x") is None
    assert validator(b"/owm/manifest/another", record.envelope) is None


def test_what_nobody_took_is_offered_again_within_seconds():
    """A peer that provides and stores before it has joined is found half a minute after it has."""
    net = Net()
    cores = net.grow(20)
    early = net.add(contact(500))
    assert net.run(early, early.start_provide(b"key", net.now)).stored == 0
    assert net.run(early, early.start_put(b"/t/key", b"ok:1", net.now)).stored == 0
    net.run_until(5.0)
    net.run(early, early.start_bootstrap([cores[0].contact], net.now))
    net.run_until(35.0)
    found = net.run(cores[3], cores[3].start_find_providers(b"key", 20, net.now)).providers
    assert [c.id for c in found] == [early.contact.id]
    assert net.run(cores[5], cores[5].start_get(b"/t/key", net.now)).value == b"ok:1"


def test_attempts_that_nobody_takes_become_rarer():
    alone = Net().add(contact(0))
    alone.start_provide(b"key", 0.0)
    attempts, now = 0, 0.0
    while now < 3600.0:
        now = min(alone.next_deadline(), 3600.0)
        before = alone.lookups
        alone.tick(now)
        alone.drain()
        attempts += alone.lookups - before
    assert 5 <= attempts <= 12


def test_the_longest_known_peers_are_exported_first():
    core = Net().add(contact(0), group_of=group_of)
    numbers = list(range(1, 60))
    Random(3).shuffle(numbers)
    for when, number in enumerate(numbers):
        core.table.heard(contact(number, f"/ip4/{20 + number}.1.1.1/tcp/1"), float(when))
    exported = [c.id for c in core.export_peers()]
    entered = [e.contact.id for e in sorted(core.table.entries(), key=lambda entry: entry.since)]
    assert len(exported) >= 40 and exported == entered


def test_exporting_and_remembering_grow_with_the_number_of_peers_and_not_its_square():
    """The group of an address is asked for at most a few times for each of 256 peers."""
    asked = 0

    def counted(address: str) -> str:
        nonlocal asked
        asked += 1
        return group_of(address)

    core = Net().add(contact(0), group_of=counted)
    core.remember(contact(n, f"/ip4/{20 + n // 200}.{n % 200}.1.1/tcp/1") for n in range(1, 257))
    assert len(core.memory) == 256
    assert len(core.export_peers()) == 256
    assert asked <= 3 * 256


def test_remembered_peers_that_do_not_answer_are_asked_last_and_then_forgotten():
    memory = PeerMemory(DhtParams(k=4, remembered=20), None)
    for number in range(20):
        memory.add(contact(number))
    for number in range(10):
        memory.failed(contact(number).id)
    assert {c.id for c in memory.sample(Random(1), 10)} == {contact(n).id for n in range(10, 20)}
    for _ in range(2):
        for number in range(20):
            memory.failed(contact(number).id)
    assert len(memory) == 8  # never all of them: after a long partition they are the way back
    memory.add(contact(77))
    assert memory.sample(Random(1), 1) == [contact(77)]


def test_the_dead_do_not_crowd_out_the_living_of_a_merge():
    """Of 100 remembered peers 90 are gone: an hour of merges meets every living one, and the dead are given up."""
    params = DhtParams(dial_back_groups=0, merge_interval=120.0)
    net = Net()
    lost = net.grow(10, first=100, params=params)
    core = net.grow(8, params=params)[0]
    for other in net.cores.values():
        for one in lost:
            if other not in lost:
                other.table.remove(one.contact.key)
                one.table.remove(other.contact.key)
    core.remember([*(contact(n) for n in range(1000, 1090)), *(one.contact for one in lost)])
    net.run_until(3600.0)
    assert sum(one.contact.key in core.table for one in lost) == 10
    net.run_until(4 * 3600.0)
    assert len(core.memory) <= 2 * params.k


@pytest.fixture(scope="module")
def thousand() -> tuple[Net, list]:
    net = Net(seed=4)
    return net, net.grow(1000)


@pytest.mark.slow
def test_a_region_is_as_large_as_it_should_be_before_anything_is_known_of_the_network(thousand):
    """At 1,000 peers the first operation of each: about 30 take the record, for 256 messages and a lookup at most."""
    net, cores = thousand
    stored, messages = [], []
    for number, core in enumerate(cores[:8]):
        assert core.size.size is None
        key = b"role:%d" % number
        result = net.run(core, core.start_provide(key, net.now, region=True))
        stored.append(result.stored)
        reader = cores[500 + number]
        assert reader.size.size is None
        found = net.run(reader, reader.start_find_providers(key, 20, net.now, region=True))
        assert [c.id for c in found.providers] == [core.contact.id]
        messages += [result.queries, found.queries]
    assert max(stored) <= 75
    assert 20 <= sum(stored) / len(stored) <= 50
    assert max(messages) <= 300
    assert sum(messages) / len(messages) <= 200


@pytest.mark.slow
def test_a_crowd_in_the_region_does_not_make_its_operations_endless(thousand):
    """600 Sybils nearest to the key, who name each other: the record is found, for at most 300 messages."""
    net, cores = thousand
    target = key_of(b"topic:crowded")
    crowd = [
        Contact(b"sybil-%05d" % n, (f"/ip4/30.{n % 250}.{n // 250}.1/tcp/1",), target ^ (n + 1)) for n in range(600)
    ]

    def lie(asker: Contact, message: Message) -> Message | None:
        wanted = key_of(message.key)
        closer = tuple(sorted(crowd, key=lambda c: c.key ^ wanted)[:20])
        return None if message.type is MessageType.ADD_PROVIDER else Message(message.type, message.key, closer=closer)

    for sybil in crowd:
        net.liars[sybil.id] = lie
    for core in cores:
        for sybil in crowd[:40]:
            core.table.heard(sybil, net.now)
    owner, reader = cores[20], cores[21]
    for core in (owner, reader):
        for number in range(8):
            sample = key_of(b"refresh %d" % number)
            core.size.note(sample, core.table.nearest(sample, 20))
    put = net.run(owner, owner.start_provide(b"topic:crowded", net.now, region=True))
    got = net.run(reader, reader.start_find_providers(b"topic:crowded", 20, net.now, region=True))
    assert owner.contact.id in [c.id for c in got.providers]
    assert max(put.queries, got.queries) <= 300
    net.liars.clear()


def test_prefixes_that_are_not_at_hand_are_not_computed():
    """In a network of 100,000 a region's parts have 15 bits: a peer that has prepared 12 makes do with them.

    A key of a given prefix is found by counting, and the numbers tell: for 12 bits it takes at most some 40,000.
    """

    def numbers(core) -> list[int]:
        core.start_get(b"/t/key", 0.0, region=True)
        keys = [e.message.key for e in core.drain() if isinstance(e, SendQuery) and e.message.key != b"/t/key"]
        return [int.from_bytes(key[2:], "big") for key in dict.fromkeys(keys)]

    core = Net().grow(60)[0]
    nearest = [Contact(b"n%d" % n, (), key_of(b"x") ^ ((n + 1) * (1 << 256) // 100_000)) for n in range(20)]
    core.size.note(key_of(b"x"), nearest)
    assert core.size.size == pytest.approx(100_000, rel=0.1)
    core.prefix_bits = 12
    found = numbers(core)
    assert 1 <= len(found) < PARAMS.region_parts and max(found) < 1 << 16
    core.prefix_bits = 16
    found = numbers(core)
    assert len(found) == PARAMS.region_parts - 1 and max(found) > 1 << 16
