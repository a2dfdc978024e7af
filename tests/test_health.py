"""The health server over real loopback sockets (SRS-NODE-08)."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import trio
from prometheus_client import CollectorRegistry, Counter

from owm.errors import ConfigError
from owm.health import Health, HealthServer, StatisticsCollector


@dataclass(frozen=True)
class Statistics:
    connections: int = 3
    load: float = 0.5
    name: str = "not a number"


@asynccontextmanager
async def server(health: Health | None = None) -> AsyncIterator[tuple[HealthServer, httpx.AsyncClient]]:
    registry = CollectorRegistry()
    Counter("owm_answers", "answers given", registry=registry).inc(2)
    registry.register(StatisticsCollector({"network": Statistics}))

    async def tasks(query: Mapping[str, str]) -> object:
        return [{"limit": query.get("limit")}]

    def broken(query: Mapping[str, str]) -> object:
        raise RuntimeError("broken")

    views = {"status": lambda query: {"state": "ok"}, "tasks": tasks, "broken": broken}
    found = HealthServer(0, lambda: health or Health("ok"), registry, views)
    async with found.running(), httpx.AsyncClient(base_url=found.url) as client:
        yield found, client


async def test_a_healthy_peer_says_so() -> None:
    async with server() as (_, client):
        for path in ("/health", "/livez", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("health", "code", "ready"),
    [
        (Health("starting"), 200, 503),
        (Health("ok", {"workers": False}), 200, 503),
        (Health("ok", {"workers": True}), 200, 200),
        (Health("degraded"), 503, 503),
        (Health("stopping"), 503, 503),
    ],
)
async def test_liveness_health_and_readiness_are_different_questions(health: Health, code: int, ready: int) -> None:
    async with server(health) as (_, client):
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/health")).status_code == code
        assert (await client.get("/readyz")).status_code == ready
        assert (await client.get("/health")).json()["checks"] == dict(health.checks)


async def test_metrics_are_prometheus_text() -> None:
    async with server() as (_, client):
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "owm_answers_total 2.0" in response.text
        assert "owm_network_connections 3.0" in response.text
        assert "owm_network_name" not in response.text


async def test_views_get_their_query_and_a_broken_one_harms_nobody() -> None:
    async with server() as (_, client):
        assert (await client.get("/local/status")).json() == {"state": "ok"}
        assert (await client.get("/local/tasks?limit=5")).json() == [{"limit": "5"}]
        assert (await client.get("/local/broken")).status_code == 500
        assert (await client.get("/local/other")).status_code == 404
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/livez")).status_code == 200


async def test_statistics_that_cannot_be_read_harm_nobody() -> None:
    def broken() -> object:
        raise RuntimeError("not yet")

    registry = CollectorRegistry()
    registry.register(StatisticsCollector({"network": broken}))
    found = HealthServer(0, lambda: Health("starting"), registry)
    async with found.running(), httpx.AsyncClient(base_url=found.url) as client:
        assert (await client.get("/metrics")).status_code == 500
        assert (await client.get("/livez")).status_code == 200


async def test_it_listens_on_the_loopback_only_and_says_where() -> None:
    async with server() as (found, _):
        assert found.url.startswith("http://127.0.0.1:")


async def test_a_taken_port_is_an_error_that_names_the_setting() -> None:
    async with server() as (found, _):
        port = int(found.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=r"health\.port"):
            async with HealthServer(port, lambda: Health("ok"), CollectorRegistry()).running():
                pass


@pytest.mark.attack("A9")
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "localhost.evil.example"]
)
async def test_a_name_that_was_rebound_to_the_loopback_learns_nothing(host: str) -> None:
    async with server() as (_, client):
        for path in ("/local/status", "/metrics", "/health", "/livez"):
            response = await client.get(path, headers={"Host": host})
            assert response.status_code == 403
            assert "ok" not in response.text
            assert "access-control-allow-origin" not in response.headers


@pytest.mark.attack("A9")
@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
async def test_loopback_names_are_served(host: str) -> None:
    async with server() as (_, client):
        assert (await client.get("/livez", headers={"Host": host})).status_code == 200


async def exchange(url: str, sent: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(sent)
        answer = bytearray()
        with trio.fail_after(10):
            async for part in stream:
                answer += part
    return bytes(answer)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 20_000, b"431"),
        (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", b"405"),
    ],
)
async def test_what_is_not_a_proper_request_is_refused(sent: bytes, status: bytes) -> None:
    async with server() as (found, _):
        assert (await exchange(found.url, sent)).split(b" ")[1] == status


async def test_clients_that_say_nothing_do_not_keep_others_out() -> None:
    """More silent connections than are allowed; they are dropped, and the server answers the next."""
    async with server() as (found, client):
        host, port = found.url.removeprefix("http://").split(":")
        silent = [await trio.open_tcp_stream(host, int(port)) for _ in range(40)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        for stream in silent:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await client.get("/livez")).status_code == 200
    gc.collect()
