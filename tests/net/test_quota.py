"""Token buckets allow a burst, then the average rate, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.net import PeerQuotas, Quota, QuotaTable, Rate
from tests.net.conformance import identity

times = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20)), max_size=100)


@given(times, st.floats(0.5, 10), st.floats(1, 20))
def test_no_window_of_time_lets_more_through_than_rate_and_burst(
    steps: list[tuple[float, float]], per_second: float, burst: float
) -> None:
    quota, now, taken = Quota(Rate(per_second, burst)), 0.0, []
    for pause, amount in steps:
        now += pause
        if quota.take(amount, now):
            taken.append((now, amount))
    for first in range(len(taken)):
        total = 0.0
        for then, amount in taken[first:]:
            total += amount
            assert total <= burst + per_second * (then - taken[first][0]) + 1e-6


@given(times)
def test_waiting_as_long_as_told_is_enough(steps: list[tuple[float, float]]) -> None:
    quota, now = Quota(Rate(2.0, 20.0)), 0.0
    for pause, amount in steps:
        now += pause
        now += quota.wait(amount, now)
        assert quota.take(amount, now)


def test_what_exceeds_the_burst_never_fits() -> None:
    quota = Quota(Rate(1.0, 10.0))
    assert quota.wait(11, 0.0) == float("inf")
    assert not quota.take(11, 1e9)


def test_a_refused_take_takes_nothing() -> None:
    quota = Quota(Rate(1.0, 10.0))
    assert quota.take(8, 0.0)
    assert not any(quota.take(5, 0.0) for _ in range(1000))
    assert quota.take(2, 0.0)


def test_a_debt_is_paid_before_anything_is_allowed() -> None:
    quota = Quota(Rate(10.0, 10.0))
    quota.charge(110, 0.0)
    assert not quota.take(1, 9.9)
    assert quota.take(1, 10.2)
    with pytest.raises(ValueError, match="only ever used up"):
        quota.charge(-1, 0.0)


def test_keys_do_not_share_and_a_flood_of_keys_is_bounded() -> None:
    table = QuotaTable(Rate(1.0, 2.0), capacity=100)
    assert table.take("a", 2, 0.0) and not table.take("a", 1, 0.0)
    assert table.take("b", 2, 0.0)
    for number in range(100_00):
        table.take(number, 1, 0.0)
    assert len(table) <= 100
    assert table.refused == 1


def test_full_buckets_are_forgotten_before_used_ones() -> None:
    table = QuotaTable(Rate(1.0, 2.0), capacity=10)
    for number in range(9):
        table.take(number, 1, 0.0)
    table.take("used up", 2, 100.0)
    table.take("new", 1, 100.0)
    assert not table.take("used up", 1, 100.0)


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_a_rate_without_flow_is_a_mistake(per_second: float, burst: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Rate(per_second, burst)


def test_new_ids_do_not_buy_a_subnet_more_than_its_share() -> None:
    quotas = PeerQuotas(Rate(1.0, 10.0))
    served = sum(
        quotas.allow(identity(number).peer_id, "/p", "ip4:203.0", 1, 0.0) for number in range(50) for _ in range(10)
    )
    assert served == 40
    assert quotas.refused == 460
    assert quotas.allow(identity(1).peer_id, "/q", "ip4:203.0", 1, 0.0), "each protocol has a quota of its own"
    assert quotas.allow(identity(60).peer_id, "/p", None, 1, 0.0), "who is exempt is not counted to a subnet"


def test_who_gives_up_gets_its_share_back_and_nobody_queues_for_ever() -> None:
    quotas, peer = PeerQuotas(Rate(10.0, 10.0)), identity(1).peer_id
    for second in range(60):  # callers who give up after a moment, 64 each second
        for _ in range(64):
            if quotas.reserve(peer, "/p", 1, float(second)) < float("inf"):
                quotas.refund(peer, "/p", 1)
    assert quotas.reserve(peer, "/p", 1, 60.0) == 0
    waits = [quotas.reserve(peer, "/p", 1, 60.0) for _ in range(1000)]
    assert max(wait for wait in waits if wait < float("inf")) <= 30
    assert waits.count(float("inf")) > 600
    assert quotas.reserve(peer, "/p", 1, 75.0) < 20, "and the queue drains as it was told"


def test_a_protocol_may_have_a_rate_of_its_own() -> None:
    quotas, peer = PeerQuotas(Rate(10.0, 10.0)), identity(1).peer_id
    quotas.set_rate("/rare", Rate(0.1, 2.0))
    assert [quotas.allow(peer, "/rare", "ip4:203.0", 1, 0.0) for _ in range(4)] == [True, True, False, False]
    assert all(quotas.allow(peer, "/often", "ip4:203.0", 1, 0.0) for _ in range(10))
    assert quotas.reserve(peer, "/rare", 2, 0.0) == 0 and quotas.reserve(peer, "/rare", 1, 0.0) == 10
    assert quotas.refused == 2


def test_what_we_send_is_paced_to_the_rate() -> None:
    quotas, peer = PeerQuotas(Rate(2.0, 4.0)), identity(1).peer_id
    assert [quotas.reserve(peer, "/p", 1, 0.0) for _ in range(7)] == [0, 0, 0, 0, 0.5, 1.0, 1.5]
