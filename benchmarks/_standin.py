"""A worker with the stand-in engine as a process of its own, for load benchmarks: ``python -m benchmarks._standin``.

No configuration can choose that engine, so this program builds the peer itself.
"""

from __future__ import annotations

import json
import logging
import sys
from random import Random, SystemRandom

import structlog
import trio

from owm.clock import SystemClock
from owm.config import LimitsSettings, ModelSettings, NetworkSettings, NodeSettings, Settings, load_constitution
from owm.directory.joining import Lead, split_address
from owm.hardware import Hardware
from owm.identity import Identity
from owm.model.testing import StandInEngine
from owm.net.libp2p import Libp2pNetwork
from owm.peer import Parts, Peer, limits_of, settle_memory
from owm.store import Store

__all__ = ["parts_of"]


def parts_of(role: str, bootstrap: str = "", slots: int = 350) -> Parts:
    """A devnet peer on the loopback with the stand-in engine, nothing on disk."""
    identity = Identity.generate()
    constitution = load_constitution("devnet")
    settings = Settings(
        node=NodeSettings(roles=(role,)),
        model=ModelSettings(slots=slots),
        limits=LimitsSettings(max_streams_per_peer=1024),
        network=NetworkSettings(max_concurrent_tasks=slots, measure_bandwidth=False),
    )

    async def source() -> list[Lead]:
        return [split_address(bootstrap)]

    return Parts(
        identity=identity,
        settings=settings,
        constitution=constitution,
        network=Libp2pNetwork(identity, limits=limits_of(settings, constitution)),
        store=Store(None),
        clock=SystemClock(),
        random=Random(1),
        secrets=SystemRandom(),
        hardware=Hardware((), 16_000),
        engine=StandInEngine(slots=slots) if role == "worker" else None,
        sources=[("bootstrap", source)] if bootstrap else [],
    )


async def _run(bootstrap: str) -> None:
    async with Peer(parts_of("worker", bootstrap)).running() as peer:
        print(json.dumps({"address": peer.parts.network.addresses[0]}), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settle_memory()
    trio.run(_run, sys.argv[1])
