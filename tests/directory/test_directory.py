"""The live view: what counts as fresh, usable and known."""

from __future__ import annotations

import hashlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from owm.clock import ManualClock
from owm.directory import Directory, DirectoryCore
from owm.identity import Identity
from owm.records import CapabilityManifest, ServedModel, SignedRecord, sign_record

OWN = Identity(b"o" * 32)
OTHERS = [Identity(hashlib.sha256(bytes([n])).digest()) for n in range(4)]
MODEL = ServedModel("m", "aa" * 32, "chat", 100)


def manifest(identity: Identity, sequence: int, **changes: object) -> SignedRecord:
    fields: dict[str, object] = {
        "roles": ("worker",), "tier": "t1", "addresses": ("/ip4/10.0.0.1/tcp/1",), "nonce": b"n",
        "task_types": ("inference",), "models": (MODEL,), "slots": 2,
    }  # fmt: skip
    return sign_record(identity, CapabilityManifest(sequence=sequence, **{**fields, **changes}), "net")  # type: ignore[arg-type]


def core(capacity: int = 100) -> DirectoryCore:
    return DirectoryCore(OWN.peer_id, b"mine", b"salt", capacity)


def ids(directory: DirectoryCore, now: float, **more: object) -> list[bytes]:
    arguments = {"task_type": "inference", "model": "", "min_tier": "t0"} | more
    return [peer.id for peer in directory.eligible(now=now, **arguments)]  # type: ignore[arg-type]


def test_a_manifest_is_fresh_for_180_s_by_our_own_clock() -> None:
    directory, peer = core(), OTHERS[0]
    directory.note(manifest(peer, 5), now=1000.0)
    assert ids(directory, 1179.9) == [peer.peer_id]
    assert ids(directory, 1180.0) == []
    assert directory.expire(1180.0) == 1


def test_an_old_sequence_does_not_renew_the_lease() -> None:
    directory, peer = core(), OTHERS[0]
    directory.note(manifest(peer, 5), now=0.0)
    assert not directory.note(manifest(peer, 5), now=100.0).updated
    assert not directory.note(manifest(peer, 4, slots=9), now=100.0).updated
    assert ids(directory, 181.0) == []
    assert directory.note(manifest(peer, 6), now=181.0).new


def test_eligibility_is_by_type_model_tier_and_slots() -> None:
    directory = core()
    directory.note(manifest(OTHERS[0], 1), 0.0)
    directory.note(manifest(OTHERS[1], 1, tier="t3"), 0.0)
    directory.note(manifest(OTHERS[2], 1, slots=0), 0.0)
    directory.note(manifest(OTHERS[3], 1, tier="t9"), 0.0)
    assert set(ids(directory, 1.0)) == {OTHERS[0].peer_id, OTHERS[1].peer_id}
    assert ids(directory, 1.0, min_tier="t2") == [OTHERS[1].peer_id]
    assert ids(directory, 1.0, model="other") == []
    assert len(ids(directory, 1.0, model="m")) == 2
    assert ids(directory, 1.0, task_type="embed_data") == []


def test_a_worker_that_failed_is_left_alone_longer_each_time_until_it_restarts() -> None:
    directory, peer = core(), OTHERS[0]
    directory.note(manifest(peer, 1), 0.0)
    directory.failed(peer.peer_id, 0.0)
    assert ids(directory, 1.9) == [] and ids(directory, 1.9, paused=True) and ids(directory, 2.0)
    directory.failed(peer.peer_id, 10.0)
    assert ids(directory, 13.9) == [] and ids(directory, 14.0)
    directory.failed(peer.peer_id, 20.0)
    directory.note(manifest(peer, 2, nonce=b"restarted"), 21.0)
    assert ids(directory, 21.0) == [peer.peer_id]


@pytest.mark.attack("T8")
def test_two_machines_with_one_key_are_both_told_once() -> None:
    told: list[str] = []
    nonces = {"a": b"nonce a", "b": b"nonce b"}
    both = {
        name: Directory(OWN, nonce, ManualClock(), lambda name=name: told.append(name))
        for name, nonce in nonces.items()
    }
    for sequence in range(1, 4):
        for name, nonce in nonces.items():
            for directory in both.values():
                directory.note(manifest(OWN, sequence, nonce=nonce))
            assert name in nonces
    assert sorted(told) == ["a", "b"]
    assert all(directory.statistics().doppelgangers == 2 for directory in both.values())  # all after their own first
    assert all(directory.peers() == [] for directory in both.values())


def test_what_we_published_before_a_restart_is_no_second_machine() -> None:
    told: list[str] = []
    directory = Directory(OWN, b"after", ManualClock(), lambda: told.append("told"))
    directory.note(manifest(OWN, 7, nonce=b"before"))
    directory.note(manifest(OWN, 8, nonce=b"after"))
    directory.note(manifest(OWN, 7, nonce=b"before"))
    assert told == [] and directory.statistics().doppelgangers == 0
    directory.note(manifest(OWN, 9, nonce=b"before"))
    assert told == ["told"]


def test_pseudonyms_are_stable_here_and_different_elsewhere() -> None:
    here, there = Directory(OWN, b"", ManualClock()), Directory(OTHERS[1], b"", ManualClock())
    peer = OTHERS[0].peer_id
    assert here.pseudonym(peer) == here.pseudonym(peer) != there.pseudonym(peer)
    assert len(here.pseudonym(peer)) == 16 and str(peer) not in here.pseudonym(peer)


def test_statistics_count_only_what_is_fresh() -> None:
    directory = core()
    directory.note(manifest(OTHERS[0], 1, busy=1), 0.0)
    directory.note(manifest(OTHERS[1], 1, roles=("gateway",), task_types=(), slots=0, models=()), 100.0)
    directory.set_connected(OTHERS[1].peer_id, True)
    now = directory.statistics(150.0)
    assert (now.discovered, now.connected, now.workers, now.gateways, now.slots, now.busy) == (2, 1, 1, 1, 2, 1)
    assert now.models == ("m",) and now.by_tier == {"t1": 2}
    assert directory.statistics(200.0).discovered == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.sampled_from([1.0, 60.0, 200.0])), max_size=25))
def test_the_index_agrees_with_the_peers_whatever_happens(steps: list[tuple[int, int, float]]) -> None:
    directory, now = core(capacity=3), 0.0
    newest: dict[bytes, int] = {}
    for who, sequence, wait in steps:
        now += wait
        directory.expire(now)
        directory.note(manifest(OTHERS[who], sequence, slots=sequence), now)
        newest[OTHERS[who].peer_id] = sequence
        present = directory.peers(now)
        assert len(present) <= 3
        assert sorted(peer.id for peer in present) == ids(directory, now)


async def test_it_follows_a_channel_of_records() -> None:
    directory = Directory(OWN, b"", ManualClock())
    changes: list[int] = []
    directory.on_change(lambda: changes.append(1))
    send, receive = trio.open_memory_channel[SignedRecord](4)
    await send.send(manifest(OTHERS[0], 1))
    await send.send(manifest(OTHERS[0], 1))
    send.close()
    await directory.follow(receive)
    assert [peer.id for peer in directory.peers()] == [OTHERS[0].peer_id] and changes == [1]
