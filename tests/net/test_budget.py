"""The day's bytes: when they are used up, bulk waits, newcomers wait, and only a few connections stay."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Link, MemoryHub, NetworkLimits
from owm.net.errors import NetworkError
from owm.net.libp2p import KeepAlive, Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, ask, connect, echo, eventually, identity

SPENT = NetworkLimits(exempt_local=True, max_bytes_per_day=200_000, grace_period=0.0)


async def test_a_spent_day_refuses_bulk_and_newcomers_and_keeps_four(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    async with trio.open_nursery() as nursery, hub.network(identity(1), limits=SPENT).running() as frugal:
        frugal.handle(ECHO, echo)
        others = [hub.network(identity(2 + number), limits=LIMITS) for number in range(10)]
        for other in others:
            await nursery.start(_run, other)
            await connect(other, frugal)
        assert frugal.statistics().bytes_left is not None and frugal.statistics().bytes_left > 0
        for _ in range(4):
            await ask(others[0], frugal, bytes(50_000))
        assert frugal.statistics().bytes_left < 0
        with pytest.raises(NetworkError, match="day's bytes"):
            await frugal.open_stream(others[0].peer_id, ECHO, bulk=True)
        await trio.sleep(60)
        assert len(frugal.connections()) <= 4
        late = hub.network(identity(50), limits=LIMITS)
        await nursery.start(_run, late)
        with pytest.raises((NetworkError, AssertionError)):
            await connect(late, frugal)
            await trio.sleep(1)
            assert late.is_connected(frugal.peer_id)
        await trio.sleep(2 * 86_400)
        assert frugal.statistics().bytes_left > 100_000
        nursery.cancel_scope.cancel()


async def _run(network: object, task_status: trio.TaskStatus[None]) -> None:
    async with network.running():  # type: ignore[attr-defined]
        task_status.started()
        await trio.sleep_forever()


async def test_over_tcp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = KeepAlive(every=0.2, timeout=5.0)
    async with (
        Libp2pNetwork(identity(1), limits=SPENT, keep_alive=quick).running() as frugal,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as other,
    ):
        frugal.handle(ECHO, echo)
        await connect(other, frugal)
        for _ in range(4):
            await ask(other, frugal, bytes(50_000))
        await eventually(lambda: (frugal.statistics().bytes_left or 0) < 0)
        with pytest.raises(NetworkError, match="day's bytes"):
            await frugal.open_stream(other.peer_id, ECHO, bulk=True)
