"""Health, readiness, Prometheus metrics and local status over HTTP, on the loopback only (SRS-NODE-08).

A web page that a user visits can make the browser send requests here, and can point a name of its own at 127.0.0.1
(DNS rebinding); so requests must name a loopback host, and no response carries a CORS header.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec
import structlog
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from owm.errors import ConfigError

__all__ = ["Health", "HealthServer", "LocalView", "StatisticsCollector"]

_log = structlog.get_logger(__name__)

_HOST: Final = "127.0.0.1"
_LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_REQUEST_SECONDS: Final = 5.0
_MAX_HEAD_BYTES: Final = 8192
_MAX_CONNECTIONS: Final = 32
_JSON: Final = "application/json"
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Health:
    """What ``/health`` says. ``checks`` name what readiness depends on and whether it holds."""

    status: str  #: "starting", "ok", "degraded" or "stopping"
    checks: Mapping[str, bool] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether this peer can take work now: its status is "ok" and every check holds."""
        return self.status == "ok" and all(self.checks.values())


class LocalView(Protocol):
    """Answers ``/local/<name>``: gets the query parameters, returns what is sent as JSON."""

    def __call__(self, query: Mapping[str, str], /) -> object | Awaitable[object]: ...


class StatisticsCollector(Collector):
    """Shows the numeric fields of statistics objects as gauges ``owm_<source>_<field>``.

    A field of numbers by key becomes a gauge with labels where its metadata name them (``{"labels": ("reason",)}``).

    Args:
        sources: for each source's name a function that returns a dataclass or msgspec struct.
    """

    def __init__(self, sources: Mapping[str, Callable[[], object]]) -> None:
        self._sources = dict(sources)

    def describe(self) -> list[Any]:
        return []  # known only when collected

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for source, read in self._sources.items():
            statistics = read()
            for name, value in _numbers(statistics):
                metric = f"owm_{source}_{name}"
                yield GaugeMetricFamily(metric, f"{name.replace('_', ' ')} of {source}", value=value)
            for name, labels, values in _labelled(statistics):
                about = f"{name.replace('_', ' ')} of {source}, by {' and '.join(labels)}"
                family = GaugeMetricFamily(f"owm_{source}_{name}", about, labels=labels)
                for key, value in values.items():
                    family.add_metric([key] if isinstance(key, str) else list(key), value)
                yield family


def _labelled(statistics: object) -> Iterator[tuple[str, tuple[str, ...], Mapping[str | tuple[str, ...], float]]]:
    if is_dataclass(statistics):
        for each in fields(statistics):
            if labels := each.metadata.get("labels"):
                yield each.name, labels, getattr(statistics, each.name)


def _numbers(statistics: object) -> Iterator[tuple[str, float]]:
    if is_dataclass(statistics):
        names = [f.name for f in fields(statistics)]
    elif isinstance(statistics, msgspec.Struct):
        names = list(statistics.__struct_fields__)
    else:
        raise TypeError(f"expected a dataclass or struct of statistics, not {type(statistics).__name__}")
    for name in names:
        value = getattr(statistics, name)
        if isinstance(value, int | float):
            yield name, float(value)


class HealthServer:
    """Serves ``/health``, ``/livez``, ``/readyz``, ``/metrics`` and ``/local/<name>`` on 127.0.0.1.

    Args:
        port: 0 lets the system choose.
        health: called for each request.
        registry: what ``/metrics`` shows.
        local: views of this peer for its operator, such as ``{"status": ..., "peers": ..., "tasks": ...}``.
    """

    def __init__(
        self,
        port: int,
        health: Callable[[], Health],
        registry: CollectorRegistry,
        local: Mapping[str, LocalView] | None = None,
    ) -> None:
        self._port = port
        self._health = health
        self._registry = registry
        self._local = dict(local or {})
        self._open = 0
        self.url = ""  #: such as ``http://127.0.0.1:8080`` while running

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HealthServer]:
        """Serve until the block ends; requests under way are cut off then.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=_HOST)
        except OSError as error:
            raise ConfigError(
                f"health.port: cannot listen on {_HOST}:{self._port} ({error}): stop what uses it, "
                "or set another port; 0 lets the system choose"
            ) from error
        self.url = f"http://{_HOST}:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._open >= _MAX_CONNECTIONS:
            await stream.aclose()
            return
        self._open += 1
        try:
            with trio.move_on_after(_REQUEST_SECONDS):
                await self._exchange(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("a health client went away", error=error)
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _exchange(self, stream: trio.SocketStream) -> None:
        """One request, one response, then close: what asks here asks rarely."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        try:
            request = await _read_request(connection, stream)
        except h11.RemoteProtocolError as error:
            status, kind, body = error.error_status_hint, _JSON, _problem("not a request that is served here")
            request = None
        else:
            if request is None:
                return
            status, kind, body = await self._respond(request)
        head = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        if request is not None and request.method == b"HEAD":
            body = b""
        out = connection.send(h11.Response(status_code=status, headers=head))
        if body:
            out = (out or b"") + (connection.send(h11.Data(data=body)) or b"")
        await stream.send_all((out or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await stream.send_eof()

    async def _respond(self, request: h11.Request) -> tuple[int, str, bytes]:
        if not _is_loopback(request):
            return 403, _JSON, _problem("this address answers to loopback names only")
        if request.method not in (b"GET", b"HEAD"):
            return 405, _JSON, _problem("only GET is served here")
        target = urlsplit(request.target.decode("ascii", "replace"))
        match target.path:
            case "/livez":
                return 200, _JSON, b'{"status":"ok"}'
            case "/health" | "/readyz":
                health = self._health()
                well = health.ready if target.path == "/readyz" else health.status in ("ok", "starting")
                body = {"status": health.status, "ready": health.ready, "checks": dict(health.checks)}
                return 200 if well else 503, _JSON, msgspec.json.encode(body)
            case "/metrics":
                return self._metrics()
        view = self._local.get(target.path.removeprefix("/local/")) if target.path.startswith("/local/") else None
        if view is None:
            return 404, _JSON, _problem("there is nothing here")
        try:
            found = view(dict(parse_qsl(target.query, max_num_fields=16)))
            if inspect.isawaitable(found):
                found = await found
            return 200, _JSON, msgspec.json.encode(found, enc_hook=str)
        except Exception:  # noqa: BLE001 - a view that fails must not end the peer
            _log.exception("a local view failed", view=target.path)
            return 500, _JSON, _problem("this view failed; the peer's log says why")

    def _metrics(self) -> tuple[int, str, bytes]:
        try:
            return 200, _METRICS, generate_latest(self._registry)
        except Exception:  # noqa: BLE001 - statistics that cannot be read must not end the peer
            _log.exception("the metrics failed")
            return 500, _JSON, _problem("the metrics failed; the peer's log says why")


def _problem(detail: str) -> bytes:
    return msgspec.json.encode({"error": detail})


def _is_loopback(request: h11.Request) -> bool:
    hosts = [value for name, value in request.headers if name == b"host"]
    if len(hosts) != 1:
        return False
    host = hosts[0].decode("ascii", "replace")
    name = host[1:].split("]", 1)[0] if host.startswith("[") else host.rsplit(":", 1)[0]
    return name.lower() in _LOOPBACK_NAMES


async def _read_request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The head of a request; None when the client leaves before it is whole."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await stream.receive_some(_MAX_HEAD_BYTES))
