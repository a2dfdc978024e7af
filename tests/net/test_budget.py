"""The day's bytes: no more pass in any 24 hours, whatever others do; what keeps a peer in the network goes on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.net import Link, MemoryHub, Network, NetworkLimits, Stream
from owm.net._budget import ByteBudget
from owm.net.errors import NetworkError, StreamReset
from owm.net.libp2p import KeepAlive, Libp2pNetwork
from tests.net.conformance import ECHO, HOLD, LIMITS, ask, connect, echo, eventually, identity

SPENT = NetworkLimits(exempt_local=True, max_bytes_per_day=200_000, grace_period=0.0)
KAD = "/owm/test/kad/1"
DAY = 86_400.0
HOUR = 3600.0


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(0, 400)), max_size=150))
def test_no_24_hours_let_more_than_the_budget_pass(steps: list[tuple[float, int]]) -> None:
    budget, now, passed = ByteBudget(1000), 0.0, []
    for pause, amount in steps:
        now += pause
        if not budget.is_spent(now):
            budget.charge(amount, now)
            passed.append((now, amount))
    for first, (began, _) in enumerate(passed):
        within = [amount for then, amount in passed[first:] if then < began + DAY]
        assert sum(within[:-1]) < 1000, "the last one may go over it"


def test_a_spent_budget_comes_back_as_its_bytes_grow_a_day_old() -> None:
    budget = ByteBudget(1_000_000)
    budget.charge(600_000, 0.0)
    budget.charge(600_000, 12 * HOUR)
    assert budget.is_spent(12 * HOUR) and budget.left(12 * HOUR) == -200_000
    assert budget.wait(12 * HOUR) > 0
    assert budget.is_spent(23.9 * HOUR) and not budget.is_spent(24.2 * HOUR)
    assert budget.left(24.2 * HOUR) == 400_000 and budget.wait(24.2 * HOUR) == 0
    assert budget.left(37 * HOUR) == 1_000_000


def test_a_restart_does_not_fill_it_again() -> None:
    before = ByteBudget(1_000_000)
    for hour in range(10):
        before.charge(90_000, hour * HOUR)
    kept = before.export(10 * HOUR)
    after = ByteBudget(1_000_000)
    after.charge(50_000, 7.0)  # what came while the store was read
    nonsense = [(-5.0, 10), (3 * DAY, 10), (5.0, -10)]
    after.restore([*((age + HOUR, amount) for age, amount in kept), *nonsense], 7.0)
    assert after.left(7.0) == 50_000
    assert after.left(7.0 + 14 * HOUR) == 140_000


@pytest.mark.slow
async def test_a_spent_day_refuses_bulk_and_newcomers_and_keeps_four(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    async with trio.open_nursery() as nursery, hub.network(identity(1), limits=SPENT).running() as frugal:
        frugal.handle(ECHO, echo)
        others = [hub.network(identity(2 + number), limits=LIMITS) for number in range(10)]
        for other in others:
            await nursery.start(_run, other)
            await connect(other, frugal)
        assert frugal.statistics().bytes_left is not None and frugal.statistics().bytes_left > 0
        with suppress(NetworkError):
            for _ in range(4):
                await ask(others[0], frugal, bytes(50_000))
        assert frugal.statistics().bytes_left <= 0
        with pytest.raises(NetworkError):
            await frugal.open_stream(others[1].peer_id, ECHO, bulk=True)
        await trio.sleep(60)
        assert len(frugal.connections()) <= 4
        late = hub.network(identity(50), limits=LIMITS)
        await nursery.start(_run, late)
        with pytest.raises((NetworkError, AssertionError)):
            await connect(late, frugal)
            await trio.sleep(1)
            assert late.is_connected(frugal.peer_id)
        await trio.sleep(DAY + HOUR)
        assert frugal.statistics().bytes_left > 100_000
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_peers_that_push_and_pull_for_two_days_move_a_budget_a_day_and_little_more(
    autojump_clock: MockClock,
) -> None:
    budget = 20_000_000
    hub = MemoryHub(Random(1), Link(latency=0.01, bandwidth=1_000_000))
    limits = replace(SPENT, max_bytes_per_day=budget)
    passed: list[tuple[float, int]] = []

    async def swallow(stream: Stream) -> None:
        while await stream.receive():
            pass

    async def pour(stream: Stream) -> None:
        while True:
            await stream.send(bytes(50_000))

    async def answer(stream: Stream) -> None:
        while data := await stream.receive():
            await stream.send(10 * data)

    async def push(stream: Stream) -> None:
        while True:
            await stream.send(bytes(50_000))
            await trio.sleep(1)

    async def attack(number: int, protocol: str, use: object) -> None:
        """Comes back under a new name whenever it is put out."""
        while True:
            number += 1000
            async with hub.network(identity(number), limits=LIMITS).running() as attacker:
                with suppress(NetworkError):
                    await attacker.connect(frugal.peer_id, frugal.addresses)
                    while True:
                        with suppress(StreamReset):
                            await use(await attacker.open_stream(frugal.peer_id, protocol))  # type: ignore[operator]
                        await trio.sleep(5)
            await trio.sleep(120)

    async with trio.open_nursery() as nursery, hub.network(identity(1), limits=limits).running() as frugal:
        frugal.handle("/push", swallow)
        frugal.handle("/pull", pour)
        frugal.handle(KAD, answer, control=True)
        for number, (protocol, use) in enumerate((("/push", push), ("/pull", swallow), (KAD, push), (KAD, push)), 10):
            nursery.start_soon(attack, number, protocol, use)
        while trio.current_time() < 50 * HOUR:
            await trio.sleep(600)
            statistics = frugal.statistics()
            passed.append((trio.current_time(), statistics.bytes_in + statistics.bytes_out))
        nursery.cancel_scope.cancel()
    before = {round(then / 600): total for then, total in passed}
    days = [total - before.get(step - 144, 0) for step, total in before.items()]
    assert max(days) <= budget * 1.05, "more than the budget and what control traffic is left"
    assert before[50 * 6] > 1.9 * budget, "the second day has a budget of its own"


async def _run(network: Network, task_status: trio.TaskStatus[None]) -> None:
    async with network.running():
        task_status.started()
        await trio.sleep_forever()


@pytest.mark.slow
async def test_over_tcp_no_more_passes_whoever_pushes_or_pulls() -> None:
    budget = 1_000_000
    limits = replace(SPENT, max_bytes_per_day=budget)
    quick = KeepAlive(every=0.6, timeout=20.0)
    async with (
        Libp2pNetwork(identity(1), limits=limits, keep_alive=quick).running() as frugal,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as other,
        Libp2pNetwork(identity(3), limits=LIMITS).running() as friend,
        trio.open_nursery() as nursery,
    ):

        async def pour(stream: Stream) -> None:
            while True:
                await stream.send(bytes(10_000))

        async def drain(stream: Stream) -> None:
            while await stream.receive():
                pass

        frugal.handle(ECHO, echo)
        frugal.handle(HOLD, pour)
        frugal.handle(KAD, echo, control=True)
        for peer in (other, friend):
            peer.handle(ECHO, echo)
            await connect(peer, frugal)
        control = await friend.open_stream(frugal.peer_id, KAD)

        async def again(protocol: str, use: object) -> None:
            while other.is_connected(frugal.peer_id):
                with suppress(NetworkError):
                    await use(await other.open_stream(frugal.peer_id, protocol))  # type: ignore[operator]
                await trio.sleep(0.05)

        nursery.start_soon(again, HOLD, drain)
        nursery.start_soon(again, ECHO, pour)
        nursery.start_soon(again, KAD, pour)
        await eventually(lambda: (frugal.statistics().bytes_left or 0) < 0)
        with pytest.raises(NetworkError, match="day's bytes"):
            await frugal.open_stream(other.peer_id, ECHO, bulk=True)
        with pytest.raises(NetworkError, match="day's bytes"):
            await frugal.open_stream(other.peer_id, ECHO)
        with trio.move_on_after(0.5):
            await control.send(b"a question")
        await trio.sleep(3)
        statistics = frugal.statistics()
        # What was read at once when the budget ran out may go over it: up to 64 KiB on each connection.
        assert statistics.bytes_in + statistics.bytes_out < budget * 1.05 + 2 * 65536
        nursery.cancel_scope.cancel()


async def test_what_keeps_a_peer_in_the_network_goes_on_when_the_day_is_spent() -> None:
    limits = replace(SPENT, max_bytes_per_day=3_000_000)
    quick = KeepAlive(every=0.3, timeout=5.0)
    async with (
        Libp2pNetwork(identity(1), limits=limits, keep_alive=quick).running() as frugal,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as other,
    ):
        frugal.handle(ECHO, echo)
        frugal.handle(KAD, echo, control=True)
        await connect(other, frugal)
        running = await other.open_stream(frugal.peer_id, ECHO)
        control = await other.open_stream(frugal.peer_id, KAD)
        await running.send(b"x")
        assert await running.receive() == b"x"
        assert frugal.budget is not None
        frugal.budget.restore([(0.0, 3_000_000)], frugal._clock.monotonic())
        with trio.fail_after(5):
            with pytest.raises(StreamReset):  # what runs is ended, without blame
                await running.receive()
            with pytest.raises(NetworkError):
                await other.open_stream(frugal.peer_id, ECHO)
            await control.send(b"where are you?")
            assert await control.receive() == b"where are you?"
        assert frugal.statistics().penalties == {}
