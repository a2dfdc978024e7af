"""The Kademlia core alone: no trio, no network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from random import Random
from statistics import median

import pytest

import owm.dht
from owm.dht._core_keyspace import SizeEstimator, preimage
from owm.dht._core_types import KEY_BITS, Contact, DhtParams, Message, MessageType, key_of
from tests.dht._sim import PARAMS, Net, contact


def test_the_core_knows_no_clock_and_no_io():
    """The same classes run in a peer and in the simulator, so they may import neither trio nor the clock."""
    cores = sorted(Path(owm.dht.__file__).parent.glob("_core*.py"))
    assert len(cores) >= 10
    for core in cores:
        imports = re.findall(r"^(?:from|import) ([a-z_]+)", core.read_text(), re.MULTILINE)
        assert not {"trio", "time", "os", "socket", "asyncio", "structlog"} & set(imports), core.name


def test_the_nearest_peers_of_a_table_are_those_of_a_sorted_list():
    core = Net().add(contact(0), DhtParams(k=8))
    for number in range(1, 400):
        core.table.heard(contact(number), 0.0)
    known = core.table.contacts()
    for number in range(200):
        target = key_of(b"target %d" % number)
        expected = sorted(known, key=lambda c: c.key ^ target)[:20]
        assert core.table.nearest(target, 20) == expected


def test_lookups_find_everything_in_hops_within_log2_of_the_size():
    net = Net()
    cores = net.grow(400)
    hops = []
    for number in range(60):
        seeker, sought = net.random.sample(cores, 2)
        result = net.run(seeker, seeker.start_find_peer(sought.contact.id, net.now))
        assert result.peer is not None and result.peer.id == sought.contact.id
        hops.append(result.hops)
    assert sum(hops) / len(hops) <= math.log2(400)


def test_a_value_put_by_one_is_read_by_all_and_the_highest_sequence_wins():
    net = Net()
    cores = net.grow(100)
    assert net.run(cores[0], cores[0].start_put(b"/t/key", b"ok:1", net.now)).stored == 20
    assert net.run(cores[1], cores[1].start_put(b"/t/key", b"ok:2", net.now, own=False)).stored >= 19
    for core in cores[2:40]:
        assert net.run(core, core.start_get(b"/t/key", net.now)).value == b"ok:2"


def test_storing_again_extends_the_life_of_a_value():
    net = Net()
    cores = net.grow(30, params=DhtParams(dial_back_groups=0, record_ttl=100.0, republish_interval=1e9))
    assert net.run(cores[0], cores[0].start_put(b"/t/key", b"ok:1", net.now)).stored == 20
    net.run_until(80.0)
    assert net.run(cores[0], cores[0].start_put(b"/t/key", b"ok:1", net.now)).stored == 20
    net.run_until(150.0)
    assert net.run(cores[9], cores[9].start_get(b"/t/key", net.now)).value == b"ok:1"
    net.run_until(300.0)
    del cores[0].server.own[b"/t/key"]
    assert net.run(cores[9], cores[9].start_get(b"/t/key", net.now)).value is None


def test_providers_are_announced_again_before_they_expire():
    net = Net()
    params = DhtParams(dial_back_groups=0, provider_ttl=400.0, reprovide_interval=150.0)
    cores = net.grow(30, params=params)
    net.run(cores[0], cores[0].start_provide(b"key", net.now))
    net.run_until(1000.0)
    found = net.run(cores[9], cores[9].start_find_providers(b"key", 20, net.now)).providers
    assert [c.id for c in found] == [cores[0].contact.id]
    cores[0].unprovide(b"key")
    net.run_until(2000.0)
    assert net.run(cores[9], cores[9].start_find_providers(b"key", 20, net.now)).providers == []


def test_dead_peers_leave_the_table_after_two_failures():
    net = Net()
    cores = net.grow(40)
    net.dead = {core.contact.id for core in cores[20:]}
    seeker = cores[0]
    for number in range(40):
        net.run(seeker, seeker.start_find_peer(b"nobody %d" % number, net.now))
    assert not any(c.id in net.dead for c in seeker.table.contacts())
    assert len(seeker.table) == 19


def test_a_joining_peer_becomes_known_to_its_neighbours():
    net = Net()
    cores = net.grow(60)
    joiner = net.add(contact(1000))
    net.run(joiner, joiner.start_bootstrap([cores[0].contact], net.now))
    net.run_until(net.now + 5.0)
    assert len(joiner.table) >= 25
    nearest = sorted(cores, key=lambda c: c.contact.key ^ joiner.contact.key)[:10]
    assert sum(joiner.contact.key in core.table for core in nearest) >= 8


def test_a_peer_knows_how_large_the_network_is_without_asking_anybody():
    net = Net()
    assert net.add(contact(10_000), DhtParams()).size_nearby() is None
    net = Net()
    cores = net.grow(400)
    sent = sum(core.sent for core in cores)
    estimates = [core.size_nearby() or 0.0 for core in cores]
    assert median(estimates) == pytest.approx(400, rel=0.2)
    assert sum(200 < estimate < 800 for estimate in estimates) > 350
    assert sum(core.sent for core in cores) == sent


@pytest.mark.parametrize("size", [60, 400, 1500])
def test_the_size_of_the_network_is_estimated_within_a_third(size):
    everybody = [contact(n) for n in range(size)]
    estimator = SizeEstimator(20)
    for number in range(15):
        target = key_of(b"sample %d" % number)
        estimator.note(target, sorted(everybody, key=lambda c: c.key ^ target)[:20])
    assert estimator.size == pytest.approx(size, rel=0.34)


def test_a_preimage_shares_the_prefix_asked_for():
    random = Random(1)
    for bits in (1, 5, 9, 12):
        target = random.getrandbits(KEY_BITS)
        assert key_of(preimage(target, bits)) >> (KEY_BITS - bits) == target >> (KEY_BITS - bits)


def test_the_same_seed_gives_the_same_run():
    def run() -> list[tuple[int, int, float]]:
        net = Net(seed=7)
        cores = net.grow(80)
        out = []
        for core in cores[:10]:
            result = net.run(core, core.start_get(b"/t/none", net.now))
            out.append((result.queries, result.hops, result.duration))
        return out

    assert run() == run()


def test_a_peer_that_moved_is_found_at_its_new_address():
    net = Net()
    cores = net.grow(30)
    moved = Contact(cores[3].contact.id, ("/ip4/10.99.99.9/tcp/2",))
    cores[3].move(moved)
    net.run(cores[3], cores[3].start_bootstrap([], net.now))
    net.run_until(net.now + 5)
    found = net.run(cores[20], cores[20].start_find_peer(moved.id, net.now)).peer
    assert found is not None and found.addresses == moved.addresses


def test_ping_and_the_exact_peer_are_answered():
    core = Net().grow(10)[0]
    assert core.receive_query(b"peer-x", Message(MessageType.PING), 0.0).type is MessageType.PING
    answer = core.receive_query(b"peer-x", Message(MessageType.FIND_NODE, core.contact.id), 0.0)
    assert answer.closer[0] == core.contact
    assert PARAMS.k == 20
