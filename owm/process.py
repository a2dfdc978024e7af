"""A peer as a process of its own: the machine's network, clock and engine, health first, and an end in order.

The health server starts before anything that takes time and ends last, so that whoever watches the peer sees it start
and stop. On SIGTERM or Ctrl-C the peer says that it is stopping, takes nothing new and completes what runs; a second
signal, or one that comes while it still starts, ends it at once.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

import structlog
import trio
from prometheus_client import CollectorRegistry

from owm.clock import SystemClock
from owm.config import Effective, TaskSettings, load_constitution
from owm.directory.joining import Lead, Source, split_address
from owm.errors import ConfigError, OwmError
from owm.hardware import detect, memory_limits
from owm.health import Health, HealthServer, StatisticsCollector
from owm.identity import Identity
from owm.model import engine_of
from owm.peer import Parts, Peer, limits_of, settle_memory
from owm.records import TIERS
from owm.roles._local import LocalViews
from owm.roles._state import PeerFile, data_folder_lock
from owm.store import Retention, Store

if TYPE_CHECKING:
    from owm.net.mdns import LocalDiscovery

__all__ = ["run_peer"]

_log = structlog.get_logger(__name__)


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


class _Life:
    """From the start of the process to its end, as signals decide."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._serving = False
        self._asked = trio.Event()

    async def end_on_signals(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._asked.is_set() or not self._serving:
                _log.info("stopping at once", signal=name)
                everything.cancel()
                return
            _log.info("stopping: what runs is completed first; a second signal cuts it", signal=name)
            self._peer.stop()
            self._asked.set()

    async def serve(self) -> None:
        """Everything is up: until a signal asks to stop."""
        self._serving = True
        await self._asked.wait()

    def health(self) -> Health:
        """The peer's, "starting" until all of it serves."""
        found = self._peer.health()
        if self._serving or found.status == "stopping":
            return found
        return replace(found, status="starting")


async def _run(effective: Effective) -> None:
    parts, local = await _parts(effective)
    peer = Peer(parts)
    life = _Life(peer)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.end_on_signals, signals, nursery.cancel_scope)
            await _serve(peer, life, local, effective)
            nursery.cancel_scope.cancel()


async def _serve(peer: Peer, life: _Life, local: LocalDiscovery | None, effective: Effective) -> None:
    """Start everything, the health server first, and end it in the opposite order."""
    settings = effective.settings
    views = LocalViews(peer)
    registry = CollectorRegistry()
    registry.register(StatisticsCollector(views.sources()))
    async with AsyncExitStack() as stack:
        health = HealthServer(settings.health.port, life.health, registry, views.views())
        await stack.enter_async_context(health.running())
        _log.info("starting", peer=str(peer.parts.identity.peer_id), health=health.url)
        found = stack.enter_context(PeerFile(effective.data_dir))
        await stack.enter_async_context(peer.running())
        if local is not None:
            await stack.enter_async_context(local.running())
        api_url = ""
        if peer.is_gateway:
            api_url = await stack.enter_async_context(_public_api(peer, effective, registry))
        found.write(_description(peer, health.url, api_url))
        _log.info(
            "the peer runs",
            peer=str(peer.parts.identity.peer_id),
            network=peer.parts.constitution.name,
            addresses=peer.parts.network.addresses,
            roles=settings.node.roles,
            api=api_url or None,
            health=health.url,
        )
        await life.serve()


def _retention(tasks: TaskSettings) -> Retention:
    return Retention(
        task_seconds=tasks.keep_days * 86400.0,
        most_tasks=tasks.most_kept,
        contents=tasks.keep_contents,
        content_seconds=tasks.contents_days * 86400.0,
        content_bytes=tasks.contents_mib << 20,
    )


async def _parts(effective: Effective) -> tuple[Parts, LocalDiscovery | None]:
    """What the settings say this peer is made of, nothing of it started."""
    settings = effective.settings
    constitution = load_constitution(settings.network.profile)
    identity = Identity.load_or_create(effective.identity_path)
    from owm.net.libp2p import Libp2pNetwork  # costs most of a second: only a running peer pays it

    clock = SystemClock()
    network = Libp2pNetwork(
        identity,
        listen=settings.network.listen_addresses,
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
    if settings.network.coordinator_url:
        _log.warning("network.coordinator_url is set, but this version cannot join through a coordinator yet")
    hardware = await detect()
    limits = memory_limits(hardware, settings.model.max_vram_percent)
    parts = Parts(
        identity=identity,
        settings=settings,
        constitution=constitution,
        network=network,
        store=Store(effective.database_path, retention=_retention(settings.tasks)),
        clock=clock,
        random=Random(SystemRandom().getrandbits(256)),  # noqa: S311 - spreads timers and samples
        secrets=SystemRandom(),
        hardware=hardware,
        engine=engine_of(settings.model, identity.peer_id, limits) if "worker" in settings.node.roles else None,
        cache_path=effective.data_dir / "peers.json",
        sources=sources,
    )
    return parts, local


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


def _description(peer: Peer, health_url: str, api_url: str) -> Mapping[str, Any]:
    return {
        "peer_id": str(peer.parts.identity.peer_id),
        "addresses": list(peer.parts.network.addresses),
        "roles": list(peer.parts.settings.node.roles),
        "health_url": health_url,
        "api_url": api_url,
    }


@asynccontextmanager
async def _public_api(peer: Peer, effective: Effective, registry: CollectorRegistry) -> AsyncIterator[str]:
    """The HTTP API of a gateway; yields its URL. Leaving it lets what runs be completed (SRS-NODE-09)."""
    from owm.api import KeyStore, create_app, serve  # loads the web framework: only gateways pay for it

    settings = effective.settings.api
    keys = await trio.to_thread.run_sync(partial(KeyStore, effective.keys_path))
    try:
        app = create_app(peer.backend, settings, keys, clock=peer.parts.clock, registry=registry)
        try:
            async with serve(app, settings, grace=effective.settings.node.stop_timeout or None) as url:
                yield url
        except OSError as error:
            raise ConfigError(
                f"api.port: cannot listen on {settings.host}:{settings.port} ({error}): stop what uses it, or set "
                "another port; 0 lets the system choose"
            ) from error
    finally:
        keys.close()


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What the user is told when several tasks failed together: the first of our own errors, else the first of all."""
    ours = group.subgroup(OwmError)
    found: BaseException = ours or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
