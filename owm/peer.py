"""One peer: builds the services, joins the network, runs the roles that its operator opted into.

:class:`Peer` takes its network, clock, randomness and engine from outside, so tests and the simulator run the same code
in memory and in virtual time; :func:`run_peer` brings the real ones.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
import trio
from prometheus_client import CollectorRegistry

from owm.clock import Clock, SystemClock
from owm.config import Constitution, Effective, Settings, load_constitution
from owm.dht import DhtParams, KademliaDht
from owm.directory import ClockComparison, Directory
from owm.directory.bandwidth import BandwidthService
from owm.directory.joining import Joiner, Lead, Source, split_address
from owm.directory.shards import ManifestTopics
from owm.errors import ConfigError, OwmError
from owm.gossip import GossipParams, GossipService, ScoreParams
from owm.hardware import Hardware, detect
from owm.health import Health, HealthServer, StatisticsCollector
from owm.identity import Identity
from owm.model import Engine, engine_of
from owm.net import Network, NetworkLimits
from owm.records import TIERS, SignedRecord
from owm.roles._local import LocalViews
from owm.roles._manifest import ManifestSource
from owm.roles._measuring import TierWatch
from owm.roles._presence import Presence
from owm.roles._standing import StandingMemory
from owm.roles._state import data_folder_lock, peer_file
from owm.roles.gateway import NetworkBackend
from owm.roles.worker import WorkerRole
from owm.store import Store
from owm.tasks import Scheduler, TaskRequester

if TYPE_CHECKING:
    from owm.net.mdns import LocalDiscovery

__all__ = ["Parts", "Peer", "limits_of", "run_peer", "settle_memory"]

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
        )
        self.gossip = GossipService(
            p.network,
            network_id=p.constitution.id,
            clock=p.clock,
            random=p.random,
            params=GossipParams(score=ScoreParams(colocation_weight=p.constitution.gossip.colocation_weight)),
        )
        self.clocks = ClockComparison()
        self.manifests = ManifestTopics(
            self.gossip, self.dht, p.network, p.constitution.id, p.random, on_update=self._compare_clocks
        )
        self.directory = Directory(p.identity, self.nonce, p.clock)
        self.bandwidth = BandwidthService(p.network, p.constitution.protocol("bandwidth"), p.clock)
        self.joiner = Joiner(p.network, self.dht, p.sources, p.random)
        self.source = ManifestSource(p.settings, p.constitution, p.network, p.hardware, self.bandwidth, self.nonce)
        self.presence = Presence(
            p.identity,
            self.source,
            p.settings.node.roles,
            self.dht,
            lambda: p.store.next_sequence("manifest", p.clock.time()),
            self.manifests.publish,
            p.random,
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
        """Join and serve until the block ends; at the end, tasks that run are completed first."""
        p = self.parts
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(p.store.running())
            await p.store.abandon_unfinished(p.clock.time())
            standing = StandingMemory(p.network.penalties, p.store, p.clock)
            await standing.load()
            await self.tier_watch.load()
            await stack.enter_async_context(p.network.running())
            nursery = await stack.enter_async_context(_cancelled_at_end())
            await stack.enter_async_context(self.gossip.running())
            await stack.enter_async_context(self.dht.running())
            nursery.start_soon(standing.run)
            nursery.start_soon(self.directory.watch, p.network)
            nursery.start_soon(self._keep_directory)
            nursery.start_soon(self.joiner.run)
            await stack.enter_async_context(self.manifests.running())
            if self.is_gateway:
                nursery.start_soon(self._follow_manifests)
            await stack.enter_async_context(self.requester.running())
            if self.worker is not None:
                await stack.enter_async_context(self.worker.running(self.source))
            nursery.start_soon(self._be_seen)
            if p.settings.network.measure_bandwidth:
                nursery.start_soon(self._measure_bandwidth)
            self.status = "ok"
            try:
                yield self
            finally:
                self.status = "stopping"

    async def _be_seen(self) -> None:
        await self.joiner.wait_joined()
        await self.presence.run()

    async def _follow_manifests(self) -> None:
        """Gateways hold the whole view; other peers only relay their shards."""
        self.manifests.set_current(self._current_manifests)
        async for received in await self.manifests.subscribe_all():
            self.directory.note(received.record)

    def _current_manifests(self) -> list[SignedRecord]:
        own = [self.presence.latest] if self.presence.latest is not None else []
        return own + [peer.envelope for peer in self.directory.peers()]

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
        return Health(status, checks)


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


def _bootstrap_source(addresses: Sequence[str]) -> Source:
    try:
        leads = [split_address(address) for address in addresses]
    except ValueError as error:
        raise ConfigError(f"network.bootstrap: {error}") from error

    async def source() -> Sequence[Lead]:
        return leads

    return source


def _local_source(local: LocalDiscovery) -> Source:
    async def source() -> Sequence[Lead]:
        return [Lead(peer, address) for peer, addresses in local.peers() for address in addresses]

    return source


async def _run(effective: Effective) -> None:
    settings = effective.settings
    constitution = load_constitution(settings.network.profile)
    identity = Identity.load_or_create(effective.identity_path)
    from owm.net.libp2p import Libp2pNetwork  # costs most of a second: only a running peer pays it

    host = settings.network.listen_host
    family = "ip6" if ":" in host else "ip4"
    clock = SystemClock()
    network = Libp2pNetwork(
        identity,
        listen=[f"/{family}/{host}/tcp/{settings.network.listen_port}"],
        announce=settings.network.announce or None,
        limits=limits_of(settings, constitution),
        clock=clock,
    )
    sources: list[tuple[str, Source]] = []
    if settings.network.bootstrap:
        sources.append(("settings", _bootstrap_source(settings.network.bootstrap)))
    local: LocalDiscovery | None = None
    if settings.network.mdns:
        from owm.net.mdns import LocalDiscovery

        local = LocalDiscovery(identity.peer_id, constitution.id, lambda: network.addresses)
        sources.append(("local network", _local_source(local)))
    parts = Parts(
        identity=identity,
        settings=settings,
        constitution=constitution,
        network=network,
        store=Store(effective.database_path),
        clock=clock,
        random=Random(SystemRandom().getrandbits(256)),  # noqa: S311 - spreads timers and samples
        secrets=SystemRandom(),
        hardware=await detect(),
        engine=engine_of(settings.model) if "worker" in settings.node.roles else None,
        cache_path=effective.data_dir / "peers.json",
        sources=sources,
    )
    if settings.network.coordinator_url:
        _log.warning("network.coordinator_url is set, but this version cannot join through a coordinator yet")
    async with AsyncExitStack() as stack:
        peer = Peer(parts)
        await stack.enter_async_context(peer.running())
        if local is not None:
            await stack.enter_async_context(local.running())
        views = LocalViews(peer)
        registry = CollectorRegistry()
        registry.register(StatisticsCollector(views.sources()))
        health = HealthServer(settings.health.port, peer.health, registry, views.views())
        await stack.enter_async_context(health.running())
        api_url = ""
        if peer.is_gateway:
            api_url = await stack.enter_async_context(_public_api(peer, effective))
        stack.enter_context(peer_file(effective.data_dir, _description(peer, health.url, api_url)))
        _log.info(
            "the peer runs",
            peer=str(identity.peer_id),
            network=constitution.name,
            addresses=parts.network.addresses,
            roles=settings.node.roles,
            api=api_url or None,
            health=health.url,
        )
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info("stopping: what runs is completed first", signal=signal.Signals(number).name)
                break


def _description(peer: Peer, health_url: str, api_url: str) -> Mapping[str, Any]:
    return {
        "peer_id": str(peer.parts.identity.peer_id),
        "addresses": list(peer.parts.network.addresses),
        "roles": list(peer.parts.settings.node.roles),
        "health_url": health_url,
        "api_url": api_url,
    }


@asynccontextmanager
async def _public_api(peer: Peer, effective: Effective) -> AsyncIterator[str]:
    """The HTTP API of a gateway; yields its URL."""
    from owm.api import KeyStore, create_app, serve  # loads the web framework: only gateways pay for it

    settings = effective.settings.api
    keys = await trio.to_thread.run_sync(partial(KeyStore, effective.keys_path))
    try:
        app = create_app(peer.backend, settings, keys, clock=peer.parts.clock)
        try:
            async with serve(app, settings) as url:
                yield url
        except OSError as error:
            raise ConfigError(
                f"api.port: cannot listen on {settings.host}:{settings.port} ({error}): stop what uses it, or set "
                "another port; 0 lets the system choose"
            ) from error
    finally:
        keys.close()


def settle_memory() -> None:
    """Look for reference cycles rarely: with many thousand objects alive, every full look is a pause of 0.1 to 0.7 s.

    What was loaded so far stays for good and is left out of every look.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def run_peer(effective: Effective) -> None:
    """Run a peer until SIGTERM or Ctrl-C.

    Raises:
        OwmError: it cannot start; the message says why and what to do.
    """
    if effective.settings.node.tier_override and effective.settings.node.tier_override not in TIERS:
        raise ConfigError(f"node.tier_override must be one of {', '.join(TIERS)}")
    with data_folder_lock(effective.data_dir):
        settle_memory()
        try:
            trio.run(_run, effective)
        except BaseExceptionGroup as group:
            raise _first_of(group) from group


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What the user is told when several tasks failed together: the first of our own errors, else the first of all."""
    ours = group.subgroup(OwmError)
    found: BaseException = ours or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
