"""A worker whose engine is away is not offered to anybody, and is again as soon as the engine is back."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from owm.model.testing import StandInEngine
from owm.peer import Peer
from tests.peer._peers import address, hub, peer, running, until


async def test_an_engine_that_is_away_is_not_advertised(autojump_clock: MockClock) -> None:
    net, engine = hub(), StandInEngine()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = await peers.start(peer(net, "worker", ["worker"], [address(gateway)], engine=engine))
        await until(lambda: offered(gateway, worker) == (4, 2, 2))
        await trio.sleep(30)
        engine.set_ready(False)
        assert await until(lambda: offered(gateway, worker) == (0, 0, 0)) < 3
        assert not gateway.directory.eligible("inference")
        engine.set_ready(True)
        assert await until(lambda: offered(gateway, worker) == (4, 2, 2)) < 3
        assert gateway.directory.eligible("inference")


def offered(by: Peer, of: Peer) -> tuple[int, int, int]:
    """Slots, models and task types that one peer sees of another; -1 before anything is seen."""
    known = by.directory.get(of.parts.identity.peer_id)
    if known is None:
        return (-1, -1, -1)
    return (known.manifest.slots, len(known.manifest.models), len(known.manifest.task_types))
