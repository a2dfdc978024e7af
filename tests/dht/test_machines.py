"""State machines: whatever happens in whatever order, the table, the stores and the lookups keep their promises."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from owm.dht._core_lookup import Lookup
from owm.dht._core_stores import ProviderStore, RecordStore
from owm.dht._core_table import RoutingTable
from owm.dht._core_types import Contact, DhtParams, Validity, key_of
from owm.net import group_of

SMALL = DhtParams(
    k=4, max_records=6, max_record_bytes=60, records_per_peer=4, providers_per_key=5, providers_per_group=3,
    keys_per_provider=3, keys_per_group=4, max_provided_keys=4, record_ttl=50.0, provider_ttl=50.0,
)  # fmt: skip
numbers = st.integers(0, 40)


def peer(number: int) -> Contact:
    return Contact(b"peer-%03d" % number, (f"/ip4/10.{number % 7}.0.{number}/tcp/1",))


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable(key_of(b"me"), SMALL, group_of)
        self.failures: dict[int, int] = {}
        self.now = 0.0

    @rule(number=numbers)
    def heard(self, number):
        self.now += 1
        self.table.heard(peer(number), self.now)
        self.failures[number] = 0
        entry = self.table.get(peer(number).key)
        assert entry is None or entry.failures == 0

    @rule(number=numbers)
    def failed(self, number):
        self.table.failed(peer(number).key)
        self.failures[number] = self.failures.get(number, 0) + 1
        if self.failures[number] >= 2:
            assert peer(number).key not in self.table

    @rule(wanted=st.binary(max_size=4))
    def nearest(self, wanted):
        key = key_of(wanted)
        assert self.table.nearest(key, 6) == sorted(self.table.contacts(), key=lambda c: c.key ^ key)[:6]

    @invariant()
    def is_bounded_and_diverse(self):
        contacts = self.table.contacts()
        assert len(contacts) == len(self.table)
        assert self.table.keys() == [contact.key for contact in contacts]
        assert self.table.sample(Random(1), 5) == Random(1).sample(contacts, min(5, len(contacts)))
        assert max(self.table.bucket_sizes(), default=0) <= 4
        groups = [group_of(contact.addresses[0]) for contact in contacts]
        assert all(groups.count(group) <= 3 for group in groups)


class RecordMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = RecordStore(key_of(b"me"), SMALL)
        self.highest: dict[bytes, int] = {}
        self.now = 0.0

    @rule(key=st.sampled_from([b"%d" % n for n in range(12)]), sequence=st.integers(0, 5), holder=st.integers(0, 3))
    def put(self, key, sequence, holder):
        taken = self.store.put(key, b"value %d" % sequence, Validity(sequence), b"%d" % holder, self.now)
        if taken:
            assert sequence >= self.highest.get(key, 0)
            self.highest[key] = sequence
            assert self.store.get(key, self.now) == b"value %d" % sequence

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.store.sweep(self.now)

    @rule()
    def nothing_outlives_its_life(self):
        assert all(self.store.get(key, self.now + 51.0) is None for key in list(self.highest))

    @invariant()
    def is_bounded(self):
        assert len(self.store) <= 6
        assert 0 <= self.store._bytes <= 60
        assert sum(self.store._by_holder.values()) == len(self.store)
        assert max(self.store._by_holder.values(), default=0) <= 4


class ProviderMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = ProviderStore(key_of(b"me"), SMALL)
        self.now = 0.0

    @rule(key=st.integers(0, 6), number=numbers)
    def add(self, key, number):
        if self.store.add(b"%d" % key, peer(number), (group_of(peer(number).addresses[0]),), self.now):
            assert peer(number) in self.store.get(b"%d" % key, 100, Random(1), self.now)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.store.sweep(self.now)

    @invariant()
    def is_bounded(self):
        keys = self.store._keys
        assert len(keys) <= 4
        assert all(0 < len(providers) <= 5 for providers in keys.values())
        assert sum(map(len, keys.values())) == len(self.store) == sum(self.store._by_peer.values())
        assert sum(self.store._by_group.values()) == len(self.store)
        assert max(self.store._by_peer.values(), default=0) <= 3
        assert max(self.store._by_group.values(), default=0) <= 4


class LookupMachine(RuleBasedStateMachine):
    """Peers answer, fail or fall slow in any order; in the end every path ends, and none is asked twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = Lookup(key_of(b"target"), [peer(n) for n in range(6)], DhtParams(k=8), own=key_of(b"me"), paths=3)
        self.asked: list = []
        self.open: list = []
        self.slow: list = []
        self.ask()

    def ask(self):
        queries = self.lookup.next_queries()
        self.open += queries
        self.asked += [q.contact.id for q in queries]

    @precondition(lambda self: self.open or self.slow)
    @rule(data=st.data(), named=st.lists(st.integers(0, 60), max_size=10))
    def answer(self, data, named):
        candidate = data.draw(st.sampled_from(self.open + self.slow))
        (self.open if candidate in self.open else self.slow).remove(candidate)
        self.lookup.answered(candidate, tuple(peer(n) for n in named))
        self.ask()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fall_slow(self, data):
        candidate = data.draw(st.sampled_from(self.open))
        self.open.remove(candidate)
        self.slow.append(candidate)
        self.lookup.slow(candidate)
        self.ask()

    @precondition(lambda self: self.open or self.slow)
    @rule(data=st.data())
    def fail(self, data):
        candidate = data.draw(st.sampled_from(self.open + self.slow))
        (self.open if candidate in self.open else self.slow).remove(candidate)
        self.lookup.failed(candidate)
        self.ask()

    @rule()
    def asking_again_changes_nothing(self):
        assert self.lookup.next_queries() == []

    @invariant()
    def nobody_is_asked_twice_and_windows_hold(self):
        assert len(self.asked) == len(set(self.asked))
        assert len(self.open) <= 9

    @invariant()
    def what_waits_for_nothing_has_ended(self):
        if not self.open and not self.slow:
            assert self.lookup.ended

    def teardown(self):
        while self.open or self.slow:
            self.lookup.failed((self.open or self.slow).pop())
            self.ask()
        assert self.lookup.ended


for machine in (TableMachine, RecordMachine, ProviderMachine, LookupMachine):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

TestTable = TableMachine.TestCase
TestRecords = RecordMachine.TestCase
TestProviders = ProviderMachine.TestCase
TestLookup = LookupMachine.TestCase
