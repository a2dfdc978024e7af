"""The event heap orders by time, then by scheduling; its trace hash depends on nothing but what was delivered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulations._engine import SECOND, EventHeap


@given(st.lists(st.integers(0, 100), max_size=60))
def test_events_run_in_order_of_time_and_then_of_scheduling(times: list[int]) -> None:
    heap = EventHeap(1)
    ran: list[tuple[int, int]] = []
    for number, when in enumerate(times):
        heap.at(when, lambda w=when, n=number: ran.append((w, n)))
    heap.run(100)
    assert ran == sorted(ran)
    assert len(ran) == len(times)
    assert heap.now == 100


@given(st.lists(st.tuples(st.integers(0, 40_000), st.lists(st.integers(0, 40_000), max_size=3)), max_size=30))
def test_what_is_scheduled_while_running_runs_in_its_place(plan: list[tuple[int, list[int]]]) -> None:
    heap = EventHeap(1)
    scheduled: list[tuple[int, int]] = []
    ran: list[tuple[int, int]] = []

    def schedule(when: int, then: list[int]) -> None:
        scheduled.append((when, len(scheduled)))
        heap.at(when, run, *scheduled[-1], then)

    def run(when: int, number: int, then: list[int]) -> None:
        assert heap.now == when
        ran.append((when, number))
        for delay in then:
            schedule(heap.now + delay, [])

    for when, then in plan:
        schedule(when, then)
    for until in range(0, 90_001, 3_000):  # a run may end in the middle of what is due soon
        heap.run(until)
        assert all(when <= until for when, _ in ran)
    assert ran == sorted(scheduled)


def test_what_lies_behind_the_end_does_not_run_yet() -> None:
    heap = EventHeap(1)
    ran: list[str] = []
    heap.at(2 * SECOND, ran.append, "later")
    heap.run(SECOND)
    assert ran == []
    heap.run(3 * SECOND)
    assert ran == ["later"]


def test_a_cancelled_timer_never_fires_and_is_no_event() -> None:
    heap = EventHeap(1)
    ran: list[int] = []
    timer = heap.timer(10, ran.append, 1)
    heap.timer(20, ran.append, 2)
    timer.cancel()
    heap.run(100)
    assert ran == [2]
    assert heap.events == 1


def test_a_timer_that_changed_nothing_is_no_event() -> None:
    heap = EventHeap(1)
    heap.timer(10, lambda: False)
    heap.run(100)
    assert heap.events == 0


def test_the_trace_hash_tells_any_difference_in_time_destination_kind_or_content() -> None:
    def traced(when: int, destination: int, kind: int, payload: int) -> str:
        heap = EventHeap(1)
        heap.at(when, lambda: heap.trace(destination, kind, payload))
        heap.run(100)
        return heap.trace_hash

    base = traced(5, 1, 2, 3)
    assert base == traced(5, 1, 2, 3)
    assert len({base, traced(6, 1, 2, 3), traced(5, 0, 2, 3), traced(5, 1, 3, 3), traced(5, 1, 2, 4)}) == 5


def test_named_random_streams_repeat_and_do_not_disturb_each_other() -> None:
    first, second = EventHeap(7), EventHeap(7)
    first.stream("links").random()
    assert first.stream("churn").random() == second.stream("churn").random()
    assert EventHeap(8).stream("churn").random() != second.stream("churn").random()


def test_progress_is_told_and_ends_at_one() -> None:
    heap = EventHeap(1)
    for when in range(0, 1000, 5):
        heap.at(when, lambda: None)
    told: list[float] = []
    heap.run(1000, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 50
