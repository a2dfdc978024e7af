"""Dial plans, back-off, admission and trimming: the policy of connections, without any."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.net import Admission, Dialer, NetworkLimits, Penalties, Penalty
from owm.net._racing import race
from owm.net.errors import DialFailed, NotDialled
from tests.net.conformance import identity

LIMITS = NetworkLimits()
PEERS = [identity(number).peer_id for number in range(400)]
PEER = PEERS[0]


def dialer(limits: NetworkLimits = LIMITS) -> Dialer:
    return Dialer(limits, Random(1))


def test_families_take_turns_and_detours_come_last() -> None:
    addresses = [
        "/onion3/x:9002",
        "/ip4/8.8.8.8/tcp/1/p2p/abc/p2p-circuit",
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/8.8.4.4/tcp/1",
        "/ip6/2a00::1/tcp/1",
        "/ip4/192.168.1.2/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
    ]
    plan = dialer().plan(PEER, addresses, 0.0)
    assert [attempt.address for attempt in plan.attempts] == [
        "/ip4/192.168.1.2/tcp/1",
        "/ip6/2a00::1/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/8.8.4.4/tcp/1",
        "/ip4/8.8.8.8/tcp/1/p2p/abc/p2p-circuit",
        "/onion3/x:9002",
    ]
    assert [attempt.start for attempt in plan.attempts] == [0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert plan.attempts[-1].timeout == 3 * plan.attempts[0].timeout


def test_a_peer_with_a_thousand_addresses_costs_sixteen_attempts() -> None:
    plan = dialer().plan(PEER, [f"/ip4/8.8.{n // 250}.{n % 250}/tcp/1" for n in range(1000)], 0.0)
    assert len(plan.attempts) == LIMITS.max_addresses


def test_no_address_is_a_refusal() -> None:
    assert dialer().plan(PEER, [], 0.0).refusal


@given(st.integers(1, 2000), st.integers(0, 2**32))
def test_back_off_doubles_up_to_its_limit(failures: int, seed: int) -> None:
    core = Dialer(LIMITS, Random(seed))
    for _ in range(failures):
        core.failed(PEER, 0.0)
    expected = min(LIMITS.longest_backoff, LIMITS.first_backoff * 2.0 ** min(failures - 1, 100))
    assert 0.75 * expected <= core.wait(PEER, 0.0) <= 1.25 * expected
    assert core.plan(PEER, ["/ip4/8.8.8.8/tcp/1"], 0.0).refusal
    assert core.plan(PEER, ["/ip4/8.8.8.8/tcp/1"], 1.3 * expected).refusal is None


def test_a_short_connection_counts_as_a_failure_and_a_stable_one_clears_the_record() -> None:
    core, now, waits = dialer(), 0.0, []
    for _ in range(6):
        core.succeeded(PEER, now)
        core.ended(PEER, opened=now, now=now + 1, wanted=False)
        waits.append(core.wait(PEER, now + 1))
        now += 1 + waits[-1]
    assert all(later > earlier for earlier, later in itertools.pairwise(waits))
    core.succeeded(PEER, now)
    core.ended(PEER, opened=now, now=now + 3600, wanted=False)
    assert core.wait(PEER, now + 3600) == 0 and core.failures(PEER) == 0


def test_a_connection_that_we_closed_ourselves_is_nobodys_failure() -> None:
    core = dialer()
    core.ended(PEER, opened=0.0, now=0.1, wanted=True)
    assert core.wait(PEER, 0.1) == 0


def test_the_record_of_failures_is_bounded() -> None:
    core = Dialer(LIMITS, Random(1), capacity=10)
    for peer in PEERS:
        core.failed(peer, 0.0)
    assert sum(core.wait(peer, 0.0) > 0 for peer in PEERS) == 10


async def test_the_first_to_answer_wins_and_the_others_are_given_up(autojump_clock: MockClock) -> None:
    plan = dialer().plan(PEER, [f"/ip4/8.8.8.{n}/tcp/1" for n in range(4)], 0.0)
    started, cancelled = [], []

    async def dial(address: str) -> str:
        started.append((address, trio.current_time()))
        try:
            await trio.sleep(1.0 if address.endswith("8.8.8.1/tcp/1") else 9.0)
        except trio.Cancelled:
            cancelled.append(address)
            raise
        return address

    began = trio.current_time()
    winner, reasons = await race(plan, dial)
    assert winner == "/ip4/8.8.8.1/tcp/1" and not reasons
    assert [round(when - began, 6) for _, when in started] == [0, 0.25, 0.5, 0.75]
    assert len(cancelled) == 3
    assert trio.current_time() - began == pytest.approx(1.25)


async def test_a_failed_attempt_makes_room_at_once_and_each_has_its_own_timeout(autojump_clock: MockClock) -> None:
    limits = NetworkLimits(max_racing=1, dial_timeout=5.0)
    plan = dialer(limits).plan(PEER, ["/ip4/8.8.8.1/tcp/1", "/ip4/8.8.8.2/tcp/1", "/ip4/8.8.8.3/tcp/1"], 0.0)

    async def dial(address: str) -> None:
        if address.endswith("8.8.8.1/tcp/1"):
            raise DialFailed("connection refused")
        if address.endswith("8.8.8.2/tcp/1"):
            raise OSError("no route")
        await trio.sleep_forever()

    began = trio.current_time()
    winner, reasons = await race(plan, dial)
    assert winner is None
    assert list(reasons.values()) == ["connection refused", "no route", "no answer within 5 s"]
    assert trio.current_time() - began == pytest.approx(5.0)


def admission(**limits: object) -> tuple[Admission, Penalties]:
    penalties = Penalties()
    return Admission(NetworkLimits(**limits), penalties), penalties  # type: ignore[arg-type]


def test_a_subnet_gets_its_share_of_inbound_connections_and_no_more() -> None:
    core, _ = admission(max_per_subnet=3)
    for number, peer in enumerate(PEERS[:3]):
        address = f"/ip4/203.0.{number}.1/tcp/1"
        assert core.admit(peer, address, inbound=True, now=0.0) is None
        core.opened(peer, peer, address, inbound=True, now=0.0)
    assert "subnet" in (core.admit(PEERS[3], "/ip4/203.0.77.1/tcp/1", inbound=True, now=0.0) or "")
    assert core.admit(PEERS[3], "/ip4/203.1.0.1/tcp/1", inbound=True, now=0.0) is None
    assert core.admit(PEERS[4], "/ip4/203.0.77.1/tcp/1", inbound=False, now=0.0) is None
    core.closed(PEERS[0])
    assert core.admit(PEERS[3], "/ip4/203.0.77.1/tcp/1", inbound=True, now=0.0) is None


@pytest.mark.parametrize("exempt", [True, False])
def test_local_addresses_are_exempt_only_when_told_so(exempt: bool) -> None:
    core, _ = admission(max_per_subnet=1, exempt_local=exempt)
    core.opened("key", PEERS[0], "/ip4/127.0.0.1/tcp/1", inbound=True, now=0.0)
    assert (core.admit(PEERS[1], "/ip4/127.0.0.1/tcp/2", inbound=True, now=0.0) is None) is exempt


def test_handshakes_of_one_subnet_are_capped() -> None:
    core, _ = admission(max_handshakes_per_subnet=2)
    address = "/ip4/203.0.1.1/tcp/1"
    assert core.begin_handshake(1, address, 0.0) is None and core.begin_handshake(2, address, 0.0) is None
    assert core.begin_handshake(3, address, 0.0)
    assert core.begin_handshake(4, "/ip4/9.9.9.9/tcp/1", 0.0) is None
    core.end_handshake(1)
    assert core.begin_handshake(5, address, 0.0) is None


def test_too_many_handshakes_cost_the_most_crowded_group_its_oldest_one() -> None:
    core, _ = admission(max_handshakes=5, max_handshakes_per_subnet=8)
    assert core.begin_handshake("alone", "/ip4/8.0.0.1/tcp/1", 0.0) is None
    for number in range(4):
        assert core.begin_handshake(number, f"/ip4/9.0.0.{number}/tcp/1", 0.0) is None
        assert core.crowded_out() is None
    assert core.begin_handshake("late", "/ip4/7.0.0.1/tcp/1", 0.0) is None
    assert core.crowded_out() == 0
    core.end_handshake(0)
    assert core.crowded_out() is None


def test_handshakes_take_no_slots_and_slots_no_handshakes() -> None:
    core, _ = admission(max_connections=10, max_inbound=10, high_water=10, low_water=5, reserved_protected=2)
    for number in range(30):
        assert core.begin_handshake(number, f"/ip4/{number + 1}.0.0.1/tcp/1", 0.0) is None
    assert core.admit(PEERS[0], "/ip4/99.0.0.1/tcp/1", inbound=True, now=0.0) is None


def test_we_open_only_so_many_connections_to_one_subnet() -> None:
    core, _ = admission(max_per_subnet=3)
    for number, peer in enumerate(PEERS[:3]):
        assert core.admit(peer, f"/ip4/9.0.0.{number}/tcp/1", inbound=False, now=0.0) is None
        core.opened(peer, peer, f"/ip4/9.0.0.{number}/tcp/1", inbound=False, now=0.0)
    assert core.admit(PEERS[3], "/ip4/9.0.7.7/tcp/1", inbound=False, now=0.0)
    assert core.admit(PEERS[3], "/ip4/9.0.7.7/tcp/1", inbound=True, now=0.0) is None
    assert core.admit(PEERS[3], "/ip4/8.0.7.7/tcp/1", inbound=False, now=0.0) is None
    core.protect(PEERS[3], "treasury", True)
    assert core.admit(PEERS[3], "/ip4/9.0.7.7/tcp/1", inbound=False, now=0.0) is None
    core.closed(PEERS[0])
    assert core.admit(PEERS[4], "/ip4/9.0.7.8/tcp/1", inbound=False, now=0.0) is None


def test_protected_peers_find_a_slot_when_the_others_are_taken() -> None:
    core, _ = admission(max_connections=10, max_inbound=10, high_water=10, low_water=5, reserved_protected=2)
    for number, peer in enumerate(PEERS[:8]):
        core.opened(peer, peer, f"/ip4/{number + 1}.0.0.1/tcp/1", inbound=True, now=0.0)
    assert core.admit(PEERS[8], "/ip4/99.0.0.1/tcp/1", inbound=True, now=0.0)
    core.protect(PEERS[8], "treasury", True)
    assert core.admit(PEERS[8], "/ip4/99.0.0.1/tcp/1", inbound=True, now=0.0) is None


def test_in_a_full_house_one_newcomer_at_a_time_takes_the_place_of_an_idle_inbound_peer() -> None:
    core, penalties = admission(
        max_connections=10, max_inbound=8, high_water=10, low_water=5, reserved_protected=2, grace_period=60.0
    )
    core.protect(PEERS[1], "tag", True)
    for number, peer in enumerate(PEERS[:8]):
        core.opened(peer, peer, f"/ip4/{number + 1}.0.0.1/tcp/1", inbound=number > 0, now=0.0)
    here = "/ip4/99.0.0.1/tcp/1"
    assert core.admit(PEERS[8], here, inbound=True, now=1.0) == "all connections are taken", "nobody is idle yet"
    for busy in PEERS[2:6]:
        core.used(busy, 4.0)
    penalties.penalise(PEERS[7], Penalty.MID_TOLERANCE, "rude", 4.0)
    assert core.to_trim(5.0) == [], "nobody goes for nothing"
    assert core.admit(PEERS[8], here, inbound=True, now=5.0) is None
    core.opened(PEERS[8], PEERS[8], here, inbound=True, now=5.0)
    assert core.to_trim(5.0) == [PEERS[7]], "not who we dialled, who is protected or who is busy"
    assert core.admit(PEERS[9], here, inbound=True, now=5.0), "one at a time: who goes takes a moment"
    core.closed(PEERS[7])
    assert core.admit(PEERS[9], here, inbound=False, now=5.0) is None, "it holds for our own dials too"
    core.opened(PEERS[9], PEERS[9], here, inbound=False, now=5.0)
    assert core.to_trim(5.0) == [PEERS[6]]
    core.closed(PEERS[6])
    assert core.admit(PEERS[10], here, inbound=True, now=5.0) == "all connections are taken"


def test_the_days_bytes_turn_away_newcomers() -> None:
    core, _ = admission(max_bytes_per_day=1_000_000)
    core.opened("key", PEERS[0], "/ip4/9.0.0.1/tcp/1", inbound=True, now=0.0)
    assert core.budget is not None
    core.budget.charge(1_100_000, 0.0)
    assert core.admit(PEERS[1], "/ip4/8.0.0.1/tcp/1", inbound=True, now=1.0)
    assert core.is_spent(86_000.0)
    assert core.admit(PEERS[1], "/ip4/8.0.0.1/tcp/1", inbound=True, now=87_000.0) is None


def test_the_worst_and_then_the_crowded_and_idle_are_trimmed_first() -> None:
    core, penalties = admission(high_water=5, low_water=3, grace_period=10.0)
    places = ["1.1.0.1", "1.1.0.2", "2.1.0.1", "3.1.0.1", "4.1.0.1", "5.1.0.1", "6.1.0.1"]
    for number, place in enumerate(places):
        core.opened(number, PEERS[number], f"/ip4/{place}/tcp/1", inbound=number != 2, now=float(number))
    core.protect(PEERS[0], "tag", True)
    penalties.penalise(PEERS[5], Penalty.MID_TOLERANCE, "rude", 20.0)
    core.used(1, 19.0)
    core.used(3, 18.0)
    assert core.to_trim(20.0) == [5, 1, 4, 6]
    assert core.to_trim(9.0) == []  # all in their grace period
    for number in (5, 1):
        core.closed(number)
    assert core.to_trim(20.0) == []  # not above the high-water mark any more


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans()), max_size=200))
def test_the_accounts_balance_whatever_comes_and_goes(steps: list[tuple[int, bool, bool]]) -> None:
    core, _ = admission(
        max_connections=10, max_inbound=6, high_water=9, low_water=5, max_per_subnet=2, reserved_protected=1
    )
    live: dict[int, bool] = {}
    for number, inbound, closes in steps:
        address = f"/ip4/{number % 5 + 1}.0.0.{number}/tcp/1"
        if closes:
            core.closed(number)
            live.pop(number, None)
        elif number not in live and core.admit(PEERS[number], address, inbound=inbound, now=0.0) is None:
            core.opened(number, PEERS[number], address, inbound=inbound, now=0.0)
            live[number] = inbound
        assert len(core) == len(live) <= 9
        assert core.inbound == sum(live.values()) <= 6
        groups = [number % 5 for number, inbound in live.items() if inbound]
        assert all(groups.count(group) <= 2 for group in groups)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="low_water"):
        NetworkLimits(high_water=10, low_water=20)
    with pytest.raises(ValueError, match="cannot be"):
        NetworkLimits(max_connections=-1)
    with pytest.raises(ValueError, match="reserved_protected"):
        NetworkLimits(reserved_protected=200)


async def test_our_own_refusal_ends_the_race_for_all_addresses(autojump_clock: MockClock) -> None:
    plan = dialer().plan(PEER, ["/ip4/8.8.8.1/tcp/1", "/ip4/8.8.8.2/tcp/1"], 0.0)
    tried = []

    async def dial(address: str) -> None:
        tried.append(address)
        raise NotDialled("all connections are taken")

    with pytest.raises(NotDialled, match="taken"):
        await race(plan, dial)
    assert tried == ["/ip4/8.8.8.1/tcp/1"]
