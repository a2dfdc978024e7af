"""The cores: seals, Merkle log, a task's life, reliability, the choice of workers."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.directory import Peer
from owm.identity import Identity
from owm.records import CapabilityManifest, ServedModel, sign_record
from owm.tasks import (
    MerkleLog,
    Reliability,
    TaskEvent,
    TaskLife,
    TaskState,
    required_tier,
    verify_consistency,
    verify_inclusion,
)
from owm.tasks._core_life import TRANSITIONS
from owm.tasks._core_scheduler import Patience, SchedulerCore, Want
from owm.tasks._core_sealing import Binding, Opener, Sealer, requester_keys, worker_keys
from owm.tasks.errors import InvalidTransition, SealBroken

REQUESTER, WORKER = Identity(b"r" * 32), Identity(b"w" * 32)
BINDING = Binding("net", b"t" * 16, REQUESTER.peer_id, WORKER.peer_id, 1_800_000_000_000)


def stream(frames: list[bytes]) -> tuple[Opener, list[bytes]]:
    public, send, _ = requester_keys(b"e" * 32, BINDING)
    receive, _ = worker_keys(WORKER, public, BINDING)
    sealer = Sealer(send)
    sealed = [sealer.seal(frame, last=index == len(frames) - 1) for index, frame in enumerate(frames)]
    return Opener(receive, sealer.header), sealed


FRAMES = st.lists(st.binary(max_size=200), min_size=1, max_size=6)


@given(FRAMES)
def test_both_ends_derive_the_same_keys_and_frames_arrive(frames: list[bytes]) -> None:
    """SRS-SEC-02."""
    opener, sealed = stream(frames)
    assert [opener.open(frame) for frame in sealed] == frames
    opener.end()


@given(FRAMES, st.data())
def test_any_flipped_bit_is_refused(frames: list[bytes], data: st.DataObject) -> None:
    opener, sealed = stream(frames)
    index = data.draw(st.integers(0, len(sealed) - 1))
    position = data.draw(st.integers(0, len(sealed[index]) * 8 - 1))
    broken = bytearray(sealed[index])
    broken[position // 8] ^= 1 << position % 8
    for frame in sealed[:index]:
        opener.open(frame)
    with pytest.raises(SealBroken):
        opener.open(bytes(broken))


@given(st.lists(st.binary(max_size=50), min_size=2, max_size=6), st.data())
def test_any_reordered_repeated_or_missing_frame_is_refused(frames: list[bytes], data: st.DataObject) -> None:
    opener, sealed = stream(frames)
    order = data.draw(st.lists(st.integers(0, len(sealed) - 1), max_size=len(sealed) + 1))
    if order == list(range(len(sealed))):
        return
    with pytest.raises(SealBroken):
        for index in order:
            opener.open(sealed[index])
        opener.end()


@given(st.binary(max_size=40).filter(bool), st.integers(1, 17))
def test_a_truncated_frame_is_refused(frame: bytes, cut: int) -> None:
    opener, sealed = stream([frame])
    with pytest.raises(SealBroken):
        opener.open(sealed[0][:-cut])


@pytest.mark.parametrize("field", ["network_id", "task", "requester", "worker", "expires"])
def test_a_frame_means_nothing_in_another_place(field: str) -> None:
    other = {
        "network_id": "x",
        "task": b"x" * 16,
        "requester": WORKER.peer_id,
        "worker": REQUESTER.peer_id,
        "expires": 1,
    }
    public, send, _ = requester_keys(b"e" * 32, BINDING)
    values = {name: getattr(BINDING, name) for name in Binding.__slots__} | {field: other[field]}
    receive, _ = worker_keys(WORKER, public, Binding(**values))
    sealer = Sealer(send)
    with pytest.raises(SealBroken):
        Opener(receive, sealer.header).open(sealer.seal(b"secret", last=True))


def test_the_two_directions_use_different_keys_and_weak_keys_are_refused() -> None:
    _, send, receive = requester_keys(b"e" * 32, BINDING)
    assert send != receive
    with pytest.raises(SealBroken):
        worker_keys(WORKER, bytes(32), BINDING)


# The test vectors of RFC 6962's reference implementation (certificate-transparency, merkle_tree_test).
VECTOR_LEAVES = [bytes.fromhex(t) for t in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                           "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
VECTOR_ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def test_the_merkle_log_matches_the_known_vectors() -> None:
    """SRS-SCHED-06."""
    log = MerkleLog(VECTOR_LEAVES)
    assert {size: log.root(size).hex() for size in VECTOR_ROOTS} == VECTOR_ROOTS


def naive_root(leaves: list[bytes]) -> bytes:
    if len(leaves) < 2:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_every_inclusion_and_consistency_proof_holds_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    log = MerkleLog(leaves)
    size = data.draw(st.integers(1, len(leaves)))
    old = data.draw(st.integers(1, size))
    position = data.draw(st.integers(0, size - 1))
    root = naive_root(leaves[:size])
    assert log.root(size) == root
    path = log.inclusion(position, size)
    assert verify_inclusion(leaves[position], position, size, path, root)
    assert not verify_inclusion(leaves[position] + b"x", position, size, path, root)
    assert not verify_inclusion(leaves[position], position, size, [*path, root], root)
    proof = log.consistency(old, size)
    assert verify_consistency(old, log.root(old), size, root, proof)
    assert not verify_consistency(old, hashlib.sha256(b"other").digest(), size, root, proof)
    if proof:
        assert not verify_consistency(old, log.root(old), size, root, proof[:-1])


@given(st.lists(st.sampled_from(TaskEvent), max_size=30))
def test_a_life_follows_the_diagram_and_ends_for_good(events: list[TaskEvent]) -> None:
    life = TaskLife()
    for event in events:
        before = life.state
        if (before, event) in TRANSITIONS:
            life.apply(event)
        else:
            with pytest.raises(InvalidTransition):
                life.apply(event)
            assert life.state is before
        if before in (TaskState.FAILED, TaskState.CANCELLED, TaskState.PAID):
            assert life.state is before


def test_reliability_is_the_formula_over_seven_days() -> None:
    """SRS-SCHED-04: (successful / total) * uptime over a rolling 7-day window."""
    reliability, hour = Reliability(), 3600.0
    start = 1_800_000_000.0
    for number in range(10):
        reliability.outcome(WORKER.peer_id, number < 8, start)
        reliability.presence(WORKER.peer_id, number < 5, start)
    assert reliability.score(WORKER.peer_id, start) == pytest.approx(0.8 * 0.5)
    restored = Reliability()
    restored.load(WORKER.peer_id, reliability.dump(WORKER.peer_id))
    assert restored.score(WORKER.peer_id, start) == pytest.approx(0.4)
    assert reliability.score(WORKER.peer_id, start + 169 * hour) == 1.0


@pytest.mark.parametrize(
    ("task_type", "network", "expected"),
    [("inference", "t0", "t0"), ("inference", "t1", "t1"), ("data_ingest", "t1", "t2"), ("inference", "t3", "t3")],
)
def test_minimum_tiers(task_type: str, network: str, expected: str) -> None:
    """SRS 4.3.1."""
    assert required_tier(task_type, network) == expected


def peer(number: int, slots: int = 1, latency: float | None = None, context: int = 2048) -> Peer:
    identity = Identity(bytes([number]) * 32)
    models = (ServedModel("chat", "aa" * 32, "chat", context),)
    manifest = CapabilityManifest(
        sequence=1, roles=("worker",), tier="t1", addresses=(), nonce=b"", slots=slots, models=models
    )
    return Peer(identity.peer_id, manifest, sign_record(identity, manifest, "n"), 0.0, latency=latency)


def test_higher_priorities_go_first_and_the_queue_is_bounded() -> None:
    """SRS-SCHED-03."""
    only = peer(1)
    core = SchedulerCore(lambda *_: [only], lambda _: 1.0, Random(1), max_queued=4)
    wants = [Want(t, "", "t0", p) for t, p in (("data_ingest", 2), ("inference", 1), ("fl_round", 0), ("inference", 1))]
    assert all(core.submit(want) for want in wants)
    assert not core.submit(Want("inference", "", "t0", 1))
    order = []
    while core.queued:
        for want in core.pump(0.0):
            order.append(want.task_type)
            core.release(only.id)
    assert order == ["fl_round", "inference", "inference", "data_ingest"]


def test_two_choices_prefer_the_faster_idle_worker_without_starving_the_slower() -> None:
    fast, slow = peer(1, 8, 0.05), peer(2, 8, 1.0)
    core = SchedulerCore(lambda *_: [fast, slow], lambda _: 1.0, Random(1))
    for _ in range(20):
        core.submit(Want("inference", "", "t0", 1))
    core.pump(0.0)
    assert core.in_flight[fast.id] == 12 and core.in_flight[slow.id] == 8


def test_an_excluded_worker_is_never_chosen_and_nobody_left_is_said() -> None:
    only = peer(1)
    core = SchedulerCore(lambda *_: [only], lambda _: 1.0, Random(1))
    want = Want("inference", "", "t0", 1, exclude=frozenset({only.id}))
    core.submit(want)
    assert core.pump(0.0) == [want] and want.hopeless and want.placed is None


def test_workers_with_room_for_the_whole_task_are_preferred_and_waited_for() -> None:
    small, large = peer(1, slots=2, context=512), peer(2, slots=2, context=4096)
    core = SchedulerCore(lambda *_: [small, large], lambda _: 1.0, Random(1))
    wants = [Want("inference", "", "t0", 1, context=size) for size in (2000, 2000, 2000, 2000, 100, 100)]
    for want in wants:
        core.submit(want)
    core.pump(0.0)
    assert [want.placed and want.placed.id for want in wants] == [large.id] * 3 + [None] + [small.id] * 2
    core.release(large.id)
    assert core.pump(0.0) == [wants[3]] and wants[3].placed is large


def test_where_no_context_is_large_enough_the_largest_is_asked() -> None:
    small, large = peer(1, slots=2, context=512), peer(2, slots=2, context=1024)
    core = SchedulerCore(lambda *_: [small, large], lambda _: 1.0, Random(1))
    first, second = (Want("inference", "", "t0", 1, exclude=frozenset(x), context=9000) for x in ((), {large.id}))
    core.submit(first)
    core.submit(second)
    core.pump(0.0)
    assert first.placed is large and second.placed is small


@pytest.mark.attack("F18")
def test_a_straggler_gets_a_deadline_that_follows_its_pace() -> None:
    patience = Patience()
    assert patience.next_deadline(None) == 30 and patience.next_deadline(3.0) == 60
    for _ in range(20):
        patience.note(0.02)
    assert patience.next_deadline(None) == 10
    for _ in range(40):
        patience.note(2.0)
    assert patience.next_deadline(None) == pytest.approx(40, rel=0.01)
