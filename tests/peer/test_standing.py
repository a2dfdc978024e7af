"""Penalties outlive a restart, and recover meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from owm.config import LimitsSettings
from owm.net import HALF_LIFE, Penalties, Penalty
from owm.net._penalties import BAN_BELOW
from owm.peer import Peer
from owm.roles._standing import StandingMemory
from owm.store import Store
from tests.net.conformance import identity
from tests.peer._peers import address, hub, peer, running
from tests.tasks.world import TrioClock

BAD = identity(666).peer_id


async def remembered(path: Path, pause: float) -> Penalties:
    clock = TrioClock()
    before, after = Penalties(), Penalties()
    async with Store(path, inline=True).running() as store:
        before.penalise(BAD, Penalty.FATAL, "test", clock.monotonic())
        await StandingMemory(before, store, clock).save()
    await trio.sleep(pause)
    async with Store(path, inline=True).running() as store:
        await StandingMemory(after, store, clock).load()
    return after


async def test_a_banned_peer_is_still_banned_after_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    after = await remembered(tmp_path / "store.sqlite", 10)
    assert after.score(BAD, trio.current_time()) < BAN_BELOW


async def test_the_time_between_counts_as_recovery(autojump_clock: MockClock, tmp_path: Path) -> None:
    after = await remembered(tmp_path / "store.sqlite", 2 * HALF_LIFE)
    assert after.score(BAD, trio.current_time()) == pytest.approx(-25, abs=0.5)


async def test_a_damaged_memory_is_left_out(autojump_clock: MockClock, tmp_path: Path) -> None:
    penalties = Penalties()
    async with Store(tmp_path / "store.sqlite", inline=True).running() as store:
        await store.replace("penalty", {b"nobody": b"\xc1", b"\xff": b"\x92\xcb" + b"\0" * 8 + b"\x00"})
        await StandingMemory(penalties, store, TrioClock()).load()
    assert len(penalties) == 0


async def test_a_peer_that_restarts_turns_the_banned_one_away(autojump_clock: MockClock, tmp_path: Path) -> None:
    net, path = hub(), tmp_path / "store.sqlite"
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"], store=path))
        bad = await peers.start(peer(net, "bad", ["gateway"], [address(first)]))
        await trio.sleep(5)
        assert first.parts.network.is_connected(bad.parts.identity.peer_id)
        first.parts.network.penalise(bad.parts.identity.peer_id, Penalty.FATAL, "test")
        await trio.sleep(1)
        await peers.kill(first)
        again = await peers.start(peer(net, "first", ["gateway"], store=path))
        await trio.sleep(30)
        assert not again.parts.network.is_connected(bad.parts.identity.peer_id)


async def test_a_restart_gives_nobody_a_second_days_bytes(autojump_clock: MockClock, tmp_path: Path) -> None:
    net, path = hub(), tmp_path / "store.sqlite"
    limits = LimitsSettings(max_bytes_per_day=50_000_000)

    def frugal() -> Peer:
        return peer(net, "frugal", ["gateway"], store=path, limits=limits)

    async with running() as peers:
        first = await peers.start(frugal())
        assert first.parts.network.budget is not None
        first.parts.network.budget.charge(40_000_000, trio.current_time())
        await trio.sleep(31)
        await peers.kill(first)
        await trio.sleep(3600)
        again = await peers.start(frugal())
        left = again.parts.network.statistics().bytes_left
        assert left is not None and 9_000_000 < left <= 10_000_000
        await peers.kill(again)
        await trio.sleep(24 * 3600)
        last = await peers.start(frugal())
        assert last.parts.network.statistics().bytes_left == 50_000_000
