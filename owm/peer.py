"""One peer: builds the services, joins the network, runs the roles that its operator opted into.

:class:`Peer` takes its network, clock, randomness and engine from outside, so tests and the simulator run the same code
in memory and in virtual time; :mod:`owm.process` brings the real ones.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.config import Constitution, Settings
from owm.dht import DhtParams, KademliaDht
from owm.directory import ClockComparison, Directory
from owm.directory.bandwidth import BandwidthService
from owm.directory.joining import Joiner, Source, split_address
from owm.directory.shards import ManifestTopics
from owm.directory.twins import TwinWatch
from owm.errors import ConfigError
from owm.gossip import GossipParams, GossipService, ScoreParams
from owm.hardware import Hardware
from owm.health import Health
from owm.identity import Identity, PeerId
from owm.model import Engine
from owm.net import Network, NetworkLimits
from owm.records import SignedRecord
from owm.roles._manifest import ManifestSource
from owm.roles._measuring import TierWatch
from owm.roles._presence import Presence
from owm.roles._standing import BudgetMemory, StandingMemory
from owm.roles.gateway import NetworkBackend
from owm.roles.worker import WorkerRole
from owm.store import Store
from owm.tasks import Scheduler, TaskRequester

__all__ = ["Parts", "Peer", "limits_of", "settle_memory"]

_log = structlog.get_logger(__name__)

_EXPIRE_EVERY: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a peer is made of; everything that a test or the simulator replaces."""

    identity: Identity
    settings: Settings
    constitution: Constitution
    network: Network
    store: Store
    clock: Clock
    random: Random  #: for protocols
    secrets: Random  #: for keys, salts and nonces: ``SystemRandom`` anywhere but in a simulation
    hardware: Hardware
    engine: Engine | None = None  #: of a worker
    cache_path: Path | None = None  #: where known peers are remembered
    sources: Sequence[tuple[str, Source]] = ()  #: ways into the network


class Peer:
    """The services of one peer, wired together. Use as ``async with Peer(parts).running() as peer``."""

    def __init__(self, parts: Parts) -> None:
        p = parts
        devnet = p.constitution.dht.exempt_private_groups
        self.parts = p
        self.nonce = p.secrets.randbytes(16)
        self.dht = KademliaDht(
            p.network,
            network_id=p.constitution.id,
            clock=p.clock,
            random=p.random,
            params=DhtParams(
                puzzle_bits=p.constitution.dht.server_puzzle_bits,
                dial_back_groups=3 if p.constitution.dht.require_dial_back else 0,
            ),
            cache_path=p.cache_path,
            devnet=devnet,
            in_region=None if devnet else _is_exposed,
            wanted=self._is_in_a_mesh,
        )
        self.gossip = GossipService(
            p.network,
            network_id=p.constitution.id,
            clock=p.clock,
            random=p.random,
            params=GossipParams(
                # A manifest enters its mesh at three places at least, so a thin mesh does, at two thirds of the bytes.
                d=4,
                d_low=3,
                d_high=8,
                d_score=2,
                d_out=1,
                flood_max=6,
                score=ScoreParams(colocation_weight=p.constitution.gossip.colocation_weight),
            ),
            lasting=15.0,
            trusted=[lead.peer for lead in map(split_address, p.settings.network.bootstrap) if lead.peer is not None],
        )
        self.clocks = ClockComparison()
        self.joiner = Joiner(p.network, self.dht, p.sources, p.random)
        self.manifests = ManifestTopics(
            self.gossip,
            self.dht,
            p.network,
            p.constitution.id,
            p.clock,
            p.random,
            joined=self.joiner.wait_joined,
            on_update=self._compare_clocks,
        )
        self.directory = Directory(p.identity, self.nonce, p.clock)
        self.bandwidth = BandwidthService(p.network, p.constitution.protocol("bandwidth"), p.clock)
        self.source = ManifestSource(p.settings, p.constitution, p.network, p.hardware, self.bandwidth, self.nonce)
        self.presence = Presence(
            p.identity,
            self.source,
            p.settings.node.roles,
            self.dht,
            lambda: p.store.next_sequence("manifest", p.clock.time()),
            self._publish,
            p.random,
        )
        self.twins = TwinWatch(
            p.network,
            p.constitution.protocol("twin"),
            p.constitution.id,
            p.clock,
            p.random,
            latest=lambda: self.presence.latest,
            known=self.manifests.newest,
            holders=self.manifests.holders,
            found=self.directory.note,
        )
        self.tier_watch = TierWatch(
            self.source,
            p.store,
            p.clock,
            p.random,
            worker="worker" in p.settings.node.roles,
            on_change=self.presence.changed,
        )
        self.requester = TaskRequester(
            p.network,
            self.directory,
            Scheduler(
                self.directory,
                p.store,
                p.clock,
                p.random,
                min_tier=p.constitution.min_tier,
                most_per_worker=max(1, p.settings.limits.max_streams_per_peer * 3 // 4),
            ),
            p.identity,
            p.store,
            p.constitution.id,
            p.clock,
            p.secrets,
            task_timeout=p.settings.api.query_timeout,
            consumer_timeout=p.settings.api.write_timeout,
        )
        self.source.log_head = self.requester.log.head
        self.worker: WorkerRole | None = None
        if "worker" in p.settings.node.roles:
            if p.engine is None:
                raise ConfigError("a worker needs an engine")
            self.worker = WorkerRole(p.engine, p.network, p.identity, p.store, p.constitution, p.settings, p.clock)
        self.backend = NetworkBackend(self.requester, self.directory, p.network, p.constitution, p.clock)
        self.status = "starting"

    @property
    def is_gateway(self) -> bool:
        return "gateway" in self.parts.settings.node.roles

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Join and serve until the block ends; at the end, tasks that run are completed first; cancelling cuts them."""
        p = self.parts
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(p.store.running())
            await p.store.abandon_unfinished(p.clock.time())
            standing = StandingMemory(p.network.penalties, p.store, p.clock)
            await standing.load()
            budget = BudgetMemory(p.network.budget, p.store, p.clock) if p.network.budget is not None else None
            if budget is not None:
                await budget.load()
            await self.tier_watch.load()
            await stack.enter_async_context(p.network.running())
            nursery = await stack.enter_async_context(_cancelled_at_end())
            await stack.enter_async_context(self.gossip.running())
            await stack.enter_async_context(self.dht.running())
            nursery.start_soon(standing.run)
            if budget is not None:
                nursery.start_soon(budget.run)
            nursery.start_soon(self.directory.watch, p.network)
            nursery.start_soon(self._keep_directory)
            nursery.start_soon(p.store.keep_pruned, p.clock)
            nursery.start_soon(self.joiner.run)
            await stack.enter_async_context(self.manifests.running())
            await stack.enter_async_context(self.twins.running())
            if self.is_gateway:
                nursery.start_soon(self._follow_manifests)
            await stack.enter_async_context(self.requester.running())
            if self.worker is not None:
                await stack.enter_async_context(self.worker.running(self.source, self.presence.changed))
            nursery.start_soon(self._be_seen)
            if p.settings.network.measure_bandwidth:
                nursery.start_soon(self._measure_bandwidth)
            self.status = "ok"
            try:
                yield self
            finally:
                self.stop()

    def stop(self) -> None:
        """Say that this peer is stopping and take no new work from now on; leaving the block completes what runs."""
        self.status = "stopping"
        if self.worker is not None:
            self.worker.stop()

    async def _be_seen(self) -> None:
        await self.joiner.wait_joined()
        await self.presence.run()

    async def _publish(self, manifest: SignedRecord) -> int:
        self.directory.note(manifest)
        return await self.manifests.publish(manifest)

    async def _follow_manifests(self) -> None:
        """Gateways hold the whole view; other peers only relay their shards."""
        self.manifests.set_current(self._current_manifests)
        async for received in await self.manifests.subscribe_all():
            self.directory.note(received.record)

    def _current_manifests(self) -> list[SignedRecord]:
        own = [self.presence.latest] if self.presence.latest is not None else []
        return own + [peer.envelope for peer in self.directory.peers()]

    def _is_in_a_mesh(self, peer: PeerId) -> bool:
        return self.gossip.core.needs(peer)

    def _compare_clocks(self, record: SignedRecord) -> None:
        if record.issuer != self.parts.identity.peer_id:
            self.clocks.note(record.issuer, record.sequence, self.parts.clock.time())

    async def _keep_directory(self) -> None:
        while True:
            await trio.sleep(_EXPIRE_EVERY)
            self.directory.expire()

    async def _measure_bandwidth(self) -> None:
        await self.joiner.wait_joined()
        await self.tier_watch.run()

    def health(self) -> Health:
        """What ``/health`` says."""
        checks = {"joined": self.joiner.status.joined or not self.parts.sources}
        if self.worker is not None:
            checks["engine"] = self.parts.engine is not None and self.parts.engine.statistics().ready
        status = self.status
        if status == "ok" and not all(checks.values()):
            status = "degraded"
        if self.is_gateway:  # one that knows no worker is well, and of no use yet
            checks["workers"] = self.directory.statistics().workers > 0
        return Health(status, checks)


def _is_exposed(key: bytes) -> bool:
    """The keys that whole roles are found by, which Sybils would crowd: worth a hundred messages more each time."""
    return key.startswith((b"role:", b"topic:"))


@asynccontextmanager
async def _cancelled_at_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


def limits_of(settings: Settings, constitution: Constitution) -> NetworkLimits:
    """The network's budget from ``[limits]``; devnets hold few connections and exempt the loopback from subnet caps."""
    limits = settings.limits
    devnet = constitution.dht.exempt_private_groups
    most = min(limits.max_connections, 12) if devnet else limits.max_connections
    return NetworkLimits(
        max_connections=most,
        max_inbound=min(limits.max_inbound, most),
        high_water=max(1, most * 3 // 4),
        low_water=max(1, most * 5 // 8),
        max_per_subnet=limits.max_connections_per_subnet,
        reserved_protected=most // 8,
        max_streams_per_peer=limits.max_streams_per_peer,
        max_bytes_per_day=limits.max_bytes_per_day or None,
        exempt_local=devnet,
        grace_period=3.0 if devnet else 10.0,
    )


def settle_memory() -> None:
    """Look for reference cycles rarely: with many thousand objects alive, every full look is a pause of 0.1 to 0.7 s.

    What was loaded so far stays for good and is left out of every look.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
