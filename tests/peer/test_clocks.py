"""A peer whose clock is off can tell, by when others say that their manifests were made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.directory import ClockComparison
from owm.identity import Identity
from owm.roles._local import LocalViews
from tests.peer._peers import address, hub, peer, running, until

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(9)]


async def test_the_one_clock_that_is_off_is_found_by_its_own_peer(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        via = [address(first)]
        others = [await peers.start(peer(net, f"w{number}", ["worker"], via)) for number in range(4)]
        wrong = await peers.start(peer(net, "wrong", ["gateway"], via, skew=40.0))
        await until(lambda: None not in (first.clocks.skew(), wrong.clocks.skew()), 300)
        assert abs(first.clocks.skew() or 0) < 3
        assert abs((wrong.clocks.skew() or 0) - 40) < 3
        for one in (first, wrong, *others):
            status = LocalViews(one)._status({})
            assert status["clock_skew_seconds"] == (None if (s := one.clocks.skew()) is None else round(s, 1))
        assert LocalViews(first)._status({})["inbound_connections"] > 0


@given(st.floats(-3600, 3600), st.lists(st.floats(0, 100), min_size=9, max_size=9), st.integers(0, 4))
def test_late_manifests_and_a_minority_of_wrong_clocks_change_little(
    skew: float, delays: list[float], liars: int
) -> None:
    comparison = ClockComparison()
    for number, peer_id in enumerate(PEERS):
        for delay in (delays[number], 0.5):  # one of them came without a detour
            issued = 1_800_000_000 + (5000 if number < liars else 0)
            comparison.note(peer_id, issued * 1000, issued + delay + skew - (5000 if number < liars else 0))
    found = comparison.skew()
    assert found is not None and abs(found - skew) <= 0.6


def test_two_peers_are_not_enough_to_judge() -> None:
    comparison = ClockComparison()
    for peer_id in PEERS[:2]:
        comparison.note(peer_id, 1000, 50.0)
    assert comparison.skew() is None
