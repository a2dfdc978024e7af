"""The sliding window (SRS-API-02) against its definition."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.api._window import SlidingWindow

DAY = 86_400.0
#: Quarter seconds are exact in binary, so "a day later" means just that. The strategy favours the edges of the window.
GAPS = st.one_of(
    st.integers(0, 8).map(lambda n: n / 4),
    st.integers(0, 4 * 7200).map(lambda n: n / 4),
    st.sampled_from([DAY, DAY - 0.25, DAY + 0.25, DAY / 2, DAY / 100]),
)


def in_window(times: list[float], now: float, period: float = DAY) -> int:
    return sum(1 for time in times if now - period < time <= now)


@given(st.lists(GAPS, max_size=400), st.sampled_from([1, 2, 3, 100]))
def test_no_day_ever_holds_more_than_the_limit_and_nobody_below_it_is_refused(gaps: list[float], limit: int) -> None:
    """Whichever 24 hours one looks at; and what is told of the rest is right at every moment."""
    window = SlidingWindow()
    now, allowed = 0.0, list[float]()
    for gap in gaps:
        now += gap
        used = in_window(allowed, now)
        assert window.remaining("key", limit, now) == limit - used
        if window.take("key", limit, now) is None:
            assert used < limit
            allowed.append(now)
        else:
            assert used == limit
    for start in allowed:
        assert sum(1 for time in allowed if start <= time < start + DAY) <= limit


def test_a_hundred_at_once_are_allowed_and_the_next_a_day_later() -> None:
    """A fixed window would let two hundred through around its edge."""
    window = SlidingWindow()
    assert [window.take("key", 100, DAY - 1.0) for _ in range(100)] == [None] * 100
    assert window.take("key", 100, DAY) == 86_399
    assert window.take("key", 100, 2 * DAY - 1.25) == 1
    assert [window.take("key", 100, 2 * DAY - 1.0) for _ in range(100)] == [None] * 100
    assert window.take("key", 100, 2 * DAY - 1.0) == 86_400


@given(st.lists(st.tuples(GAPS, st.integers(1, 5)), max_size=60), st.integers(1, 5))
def test_waiting_as_long_as_told_is_enough_and_a_second_less_is_not(asked: list[tuple[float, int]], limit: int) -> None:
    """Even where the operator has changed the limit meanwhile."""
    window = SlidingWindow()
    now, allowed = 0.0, list[float]()
    for gap, limit_then in asked:
        now += gap
        if window.take("key", limit_then, now) is None:
            assert in_window(allowed, now) < limit_then
            allowed.append(now)
        else:
            assert in_window(allowed, now) >= limit_then
    wait = copy.deepcopy(window).take("key", limit, now)
    if wait is None:
        return
    assert wait >= 1
    assert copy.deepcopy(window).take("key", limit, now + wait) is None
    if wait > 1:
        assert copy.deepcopy(window).take("key", limit, now + wait - 1) is not None


@given(st.lists(st.tuples(st.sampled_from("abc"), GAPS), max_size=100))
def test_callers_do_not_count_for_each_other(asked: list[tuple[str, float]]) -> None:
    together = SlidingWindow()
    alone = {name: SlidingWindow() for name in "abc"}
    now = 0.0
    for caller, gap in asked:
        now += gap
        assert together.take(caller, 2, now) == alone[caller].take(caller, 2, now)


def test_no_limit_means_no_limit_and_costs_no_memory() -> None:
    window = SlidingWindow()
    assert {window.take("key", 0, float(now)) for now in range(1000)} == {None}
    assert window.remaining("key", 0, 1000.0) is None
    assert len(window) == 0


@pytest.mark.parametrize("callers", [10, 1000])
def test_callers_are_forgotten_when_their_day_is_over_or_there_are_too_many(callers: int) -> None:
    window = SlidingWindow(max_callers=500)
    for number in range(callers):
        assert window.take(f"caller {number}", 5, float(number)) is None
    assert len(window) == min(callers, 500)
    window.take("late", 5, callers + DAY)
    assert len(window) == 1
