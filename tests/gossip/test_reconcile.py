"""Two sets become one: whatever differs is found, in few questions, and nonsense is refused."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.gossip._core_reconcile import LEAF, Node, Reconciliation, Summary
from owm.net.errors import ProtocolViolation

ids = st.binary(min_size=32, max_size=32)


def id_of(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def reconcile(ours: Summary, theirs: Summary) -> tuple[Reconciliation, int]:
    found, trips = Reconciliation(ours), 0
    while asked := found.questions():
        found.answer(asked, [theirs.node(prefix) for prefix in asked])
        trips += 1
    return found, trips


@given(st.sets(ids, max_size=80), st.sets(ids, max_size=80), st.sets(ids, max_size=80))
@settings(max_examples=60)
def test_what_differs_is_found(shared: set[bytes], ours: set[bytes], theirs: set[bytes]) -> None:
    found, _ = reconcile(Summary(shared | ours), Summary(shared | theirs))
    assert set(found.missing) == theirs - ours - shared
    assert set(found.surplus) == ours - theirs - shared


@given(st.lists(ids, max_size=120))
@settings(max_examples=40)
def test_the_digest_depends_on_the_set_alone(found: list[bytes]) -> None:
    one, other = Summary(), Summary(found)
    for id_ in reversed(found):
        one.add(id_)
        one.digest("")  # kept digests must not go stale
    assert one.digest("") == other.digest("") and len(one) == len(other)


@given(st.sets(ids, max_size=80), st.sets(ids, max_size=20))
@settings(max_examples=40)
def test_a_summary_that_has_grown_is_that_of_all_and_the_old_one_stays(old: set[bytes], new: set[bytes]) -> None:
    before = Summary(old)
    digest = before.digest("")
    grown = before.grown(new)
    assert grown.digest("") == Summary(old | new).digest("") and len(grown) == len(old | new)
    assert (before.digest(""), len(before)) == (digest, len(old))


def test_ten_thousand_ids_that_differ_in_five_need_few_questions() -> None:
    every = [id_of(number) for number in range(10_000)]
    found, trips = reconcile(Summary(every[5:]), Summary(every))
    assert sorted(found.missing) == sorted(every[:5]) and found.surplus == []
    assert trips <= 6
    same, trips = reconcile(Summary(every), Summary(every))
    assert (same.missing, same.surplus, trips) == ([], [], 1)


def test_more_than_the_limit_waits_for_the_next_time() -> None:
    found = Reconciliation(Summary(), limit=100)
    theirs = Summary(id_of(number) for number in range(5000))
    while asked := found.questions(4):
        found.answer(asked, [theirs.node(prefix) for prefix in asked])
    assert 100 <= len(found.missing) <= 100 + 4 * LEAF


@pytest.mark.parametrize(
    "node",
    [
        (None, (b"x" * 32,) * 15),
        ((b"short",), ()),
        (tuple(id_of(n) for n in range(LEAF + 1)), ()),
    ],
)
def test_a_summary_that_is_none_is_refused(node: Node) -> None:
    with pytest.raises(ProtocolViolation):
        Reconciliation(Summary()).answer([""], [node])
    with pytest.raises(ProtocolViolation):
        Reconciliation(Summary()).answer([""], [])


def test_a_liar_without_end_is_stopped_by_a_budget() -> None:
    found = Reconciliation(Summary([id_of(1)]), limit=1000)
    with pytest.raises(ProtocolViolation, match="without end"):
        for _ in range(10_000):
            asked = found.questions(64)
            found.answer(asked, [(None, (b"\1" * 32,) * 16)] * len(asked))


def test_ids_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Summary([b"short"])
    with pytest.raises(ValueError, match="32 bytes"):
        Summary().add(b"short")
