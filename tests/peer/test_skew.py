"""Peers whose clocks are an hour apart live in one network: leases, tasks and receipts go by each one's own clock."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from owm.peer import Peer
from tests.peer._peers import address, ask, hub, peer, running, until

HOUR = 3600.0


def usable(by: Peer, of: Peer) -> bool:
    return of.parts.identity.peer_id in {known.id for known in by.directory.eligible("inference")}


@pytest.mark.slow
@pytest.mark.attack("T13")
@pytest.mark.parametrize("skew", [-HOUR, HOUR])
async def test_an_hour_apart_for_ten_minutes(skew: float, autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        right = await peers.start(peer(net, "right", ["gateway", "worker"]))
        wrong = await peers.start(peer(net, "wrong", ["gateway", "worker"], [address(right)], skew=skew))
        pairs = ((right, wrong), (wrong, right))
        await until(lambda: all(usable(by, of) for by, of in pairs), 10)
        began, answers, lapses = trio.current_time(), 0, 0
        while trio.current_time() < began + 600:
            await trio.sleep(1)
            lapses += sum(not usable(by, of) for by, of in pairs)
            if int(trio.current_time()) % 20 == 0:
                for by, of in pairs:
                    text, worker = await ask(by, f"question {answers}")
                    assert text and worker == str(of.parts.identity.peer_id)
                    answers += 1
        assert lapses == 0 and answers >= 50
        for by, of in pairs:
            known = by.directory.get(of.parts.identity.peer_id)
            assert known is not None and by.parts.clock.monotonic() - known.seen < 70  # renewed all the time
            assert not of.parts.network.penalties.reasons and of.directory.statistics().doppelgangers == 0


@pytest.mark.slow
@pytest.mark.attack("T13")
@pytest.mark.parametrize("skew", [-HOUR, HOUR])
async def test_who_leaves_is_forgotten_in_time_though_its_clock_was_off(skew: float, autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        right = await peers.start(peer(net, "right", ["gateway"]))
        wrong = await peers.start(peer(net, "wrong", ["worker"], [address(right)], skew=skew))
        await until(lambda: usable(right, wrong), 10)
        await peers.kill(wrong)
        assert 100 < await until(lambda: not right.directory.peers(), 300) <= 200
