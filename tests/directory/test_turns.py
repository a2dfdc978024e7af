"""Turns of relays: the same for all, overlapping, and fair."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from owm.directory._core_turns import TURN, Turns, announced_turns, topic_key, turn_at

NEEDED = 0.1
times = st.floats(0, 1e10)


@given(times)
def test_a_subscriber_is_found_under_this_turn_s_key_and_soon_under_the_next(now: float) -> None:
    announced = announced_turns(now)
    assert announced[0] == turn_at(now)
    assert (len(announced) == 2) == (now % TURN >= TURN - 300)
    assert len({topic_key("news", turn) for turn in announced}) == len(announced)


@given(times, st.floats(-200, 200))
def test_a_clock_that_is_a_little_off_looks_where_others_can_be_found(now: float, off: float) -> None:
    looked_for = turn_at(now + off)
    began = now - now % TURN
    # Who announced before the turn began announces through it, and is remembered afterwards.
    assert looked_for in {*announced_turns(now), turn_at(began - 1)}


@given(st.integers(0, 3000))
def test_each_turn_s_relays_are_there_before_the_last_one_s_go(turn: int) -> None:
    peers = [Turns(place / 500) for place in range(500)]
    start = turn * TURN
    before = {n for n, peer in enumerate(peers) if peer.begins(NEEDED, start - 250)}
    middle = {n for n, peer in enumerate(peers) if peer.begins(NEEDED, start + TURN / 2)}
    assert 49 <= len(middle) <= 51 and middle <= before
    last = {n for n, peer in enumerate(peers) if peer.begins(NEEDED, start - TURN / 2)}
    assert all(not peers[n].ends(NEEDED, start + 250) for n in last | middle)
    assert all(peers[n].ends(NEEDED, start + 350) for n in last if not peers[n].begins(1.25 * NEEDED, start + 350))


def test_nobody_relays_much_more_than_its_share() -> None:
    turns = [sum(Turns(place / 500).begins(NEEDED, (turn + 0.5) * TURN) for turn in range(100)) for place in range(500)]
    assert min(turns) >= 8 and max(turns) <= 12
