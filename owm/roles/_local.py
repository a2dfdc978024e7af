"""What a peer shows its own operator over the loopback: status, peers, tasks, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from owm import __version__
from owm.health import LocalView
from owm.net import Standing
from owm.store import task_view

if TYPE_CHECKING:
    from owm.peer import Peer

__all__ = ["LocalViews"]

_LIMITS: Final = (
    "max_connections",
    "max_inbound",
    "max_per_subnet",
    "max_handshakes",
    "max_streams_per_peer",
    "max_bytes_per_day",
)

_MOST_TASKS: Final = 1000


class LocalViews:
    """The views of one running peer; see ``owm status``, ``owm peers``, ``owm tasks`` and ``/metrics``."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def views(self) -> Mapping[str, LocalView]:
        return {"status": self._status, "peers": self._peers, "tasks": self._tasks}

    def sources(self) -> Mapping[str, Callable[[], object]]:
        """What ``/metrics`` counts."""
        peer = self._peer
        found: dict[str, Callable[[], object]] = {
            "network": peer.parts.network.statistics,
            "network_limit": lambda: peer.parts.network.limits,
            "dht": peer.dht.statistics,
            "gossip": peer.gossip.statistics,
            "directory": peer.directory.statistics,
        }
        if peer.worker is not None:
            found["worker"] = peer.worker.tasks.statistics
        if peer.parts.engine is not None:
            found["engine"] = peer.parts.engine.statistics
        if peer.is_gateway:
            found["gateway"] = peer.backend.statistics
        return found

    def _status(self, _query: Mapping[str, str]) -> dict[str, Any]:
        peer = self._peer
        health = peer.health()
        engine = peer.parts.engine
        statistics = peer.parts.network.statistics()
        skew = peer.clocks.skew()
        return {
            "state": health.status,
            "version": __version__,
            "peer_id": str(peer.parts.identity.peer_id),
            "alias": peer.parts.settings.node.alias,
            "network": peer.parts.constitution.name,
            "roles": list(peer.parts.settings.node.roles),
            "tier": peer.source.tier,
            "vram_mib": peer.parts.hardware.vram_mib,
            "ram_mib": peer.parts.hardware.ram_mib,
            "addresses": list(peer.parts.network.addresses),
            "joining": peer.joiner.status.summary,
            "connections": len(peer.parts.network.peers()),
            "inbound_connections": statistics.inbound,
            "dialled_by_groups": len(peer.dht.core.dialled_by),
            "clock_skew_seconds": None if skew is None else round(skew, 1),
            "bytes_in": statistics.bytes_in,
            "bytes_out": statistics.bytes_out,
            "bytes_left_today": statistics.bytes_left,
            "penalties": statistics.penalties,
            "peers_penalised": statistics.penalised,
            "peers_banned": statistics.banned,
            "connections_refused": statistics.refused,
            "streams_refused": statistics.streams_refused,
            "limits": {name: getattr(peer.parts.network.limits, name) for name in _LIMITS},
            "bandwidth_mbps": round(peer.bandwidth.mbps, 1),
            "models": [model.id for model in engine.models] if engine is not None else [],
            "engine_pid": engine.statistics().pid if engine is not None else None,
            "dht": peer.dht.statistics().mode,
            "dht_table": peer.dht.statistics().table,
            "peers_known": peer.directory.statistics().discovered,
            "workers_known": peer.directory.statistics().workers,
            "doppelgangers": peer.directory.statistics().doppelgangers,
        }

    def _peers(self, _query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Everybody known, connected or not: they are told apart (discovered, connected, usable), and so are those who
        are turned away (penalised, banned)."""
        network = self._peer.parts.network
        connections = {c.peer: c for c in network.connections()}
        standings = network.penalties.standings(self._peer.parts.clock.monotonic())
        rows = []
        for peer in self._peer.directory.peers():
            connection = connections.pop(peer.id, None)
            rows.append(
                {
                    "peer_id": str(peer.id),
                    "roles": list(peer.manifest.roles),
                    "tier": peer.manifest.tier,
                    "models": [model.id for model in peer.manifest.models],
                    "state": ("usable" if peer.manifest.slots else "connected") if connection else "discovered",
                    **self._connection(connection),
                    **_held_against(standings.pop(peer.id, None)),
                }
            )
        for connection in connections.values():
            row: dict[str, Any] = {
                "peer_id": str(connection.peer),
                "roles": [],
                "tier": None,
                "models": [],
                "state": "connected",
            }
            standing = standings.pop(connection.peer, None)
            rows.append({**row, **self._connection(connection), **_held_against(standing)})
        for other, standing in standings.items():
            row = {"peer_id": str(other), "roles": [], "tier": None, "models": [], "state": "penalised"}
            rows.append({**row, **self._connection(None), **_held_against(standing)})
        return rows

    @staticmethod
    def _connection(connection: Any) -> dict[str, Any]:
        if connection is None:
            return {"rtt_ms": None, "score": None, "inbound": None, "address": None, "streams": 0}
        measured = connection.round_trip
        return {
            "rtt_ms": None if measured is None else round(measured * 1000, 2),
            "score": round(connection.score, 1),
            "inbound": connection.inbound,
            "address": connection.address,
            "streams": connection.streams,
        }

    async def _tasks(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        try:
            limit = max(1, min(int(query.get("limit", "100")), _MOST_TASKS))
        except ValueError:
            limit = 100
        return [task_view(entry) for entry in await self._peer.parts.store.tasks(limit)]


def _held_against(standing: Standing | None) -> dict[str, Any]:
    """What a peer's penalties change in its row."""
    if standing is None:
        return {}
    row: dict[str, Any] = {"score": round(standing.score, 1)}
    if standing.disconnect:
        row["state"] = "banned" if standing.banned else "penalised"
    return row
