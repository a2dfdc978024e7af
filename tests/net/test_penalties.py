"""Scores fall by four levels, halve in ten minutes, and are kept whatever the peer does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from owm.net import Penalties, Penalty
from owm.net._penalties import BAN_BELOW, DISCONNECT_BELOW, HALF_LIFE
from tests.net.conformance import identity

PEER, OTHER = identity(1).peer_id, identity(2).peer_id


def test_one_fatal_fault_bans_and_two_half_lives_later_the_peer_may_return() -> None:
    penalties = Penalties()
    standing = penalties.penalise(PEER, Penalty.FATAL, "forged", 0.0)
    assert (standing.score, standing.disconnect, standing.banned) == (-100.0, True, True)
    assert penalties.is_banned(PEER, HALF_LIFE - 1) and not penalties.is_banned(PEER, HALF_LIFE + 1)
    assert penalties.standing(PEER, 2 * HALF_LIFE).disconnect
    assert not penalties.standing(PEER, 2.5 * HALF_LIFE).disconnect


def test_mild_faults_far_apart_are_forgiven() -> None:
    penalties = Penalties()
    for number in range(100):
        standing = penalties.penalise(PEER, Penalty.HIGH_TOLERANCE, "slow", number * 120.0)
        assert not standing.disconnect


@given(st.lists(st.tuples(st.sampled_from(Penalty), st.floats(0, 2000)), max_size=50))
def test_scores_stay_between_minus_100_and_0(faults: list[tuple[Penalty, float]]) -> None:
    penalties, now = Penalties(), 0.0
    for penalty, pause in faults:
        now += pause
        before = penalties.score(PEER, now)
        score = penalties.penalise(PEER, penalty, "fault", now).score
        assert -100 <= score < 0 and score <= before
        assert penalties.standing(PEER, now).disconnect == (score < DISCONNECT_BELOW)
        assert penalties.is_banned(PEER, now) == (score < BAN_BELOW)
    assert penalties.score(OTHER, now) == 0


def test_a_flood_of_ids_neither_grows_memory_nor_clears_the_worst() -> None:
    penalties = Penalties(capacity=100)
    penalties.penalise(PEER, Penalty.FATAL, "forged", 0.0)
    for number in range(10, 2010):
        penalties.penalise(identity(number).peer_id, Penalty.LOW_TOLERANCE, "flood", 1.0)
    assert len(penalties) <= 100
    assert penalties.is_banned(PEER, 1.0)


def test_scores_survive_a_restart() -> None:
    before = Penalties()
    before.penalise(PEER, Penalty.FATAL, "forged", 0.0)
    kept = before.export(HALF_LIFE)
    after = Penalties()
    after.restore([*kept.items(), ("not a peer id", -5.0), (str(OTHER), 50.0), (str(OTHER), float("nan"))], 7.0)
    assert round(after.score(PEER, 7.0)) == -50
    assert after.score(OTHER, 7.0) == 0 and len(after) == 1


def test_reasons_are_counted_and_their_number_is_bounded() -> None:
    penalties = Penalties()
    for number in range(1000):
        penalties.penalise(PEER, Penalty.HIGH_TOLERANCE, f"reason {number}", 0.0)
    assert len(penalties.reasons) <= 65
    assert sum(penalties.reasons.values()) == 1000
