"""What the API counts for Prometheus."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry
from trio.testing import MockClock

from owm.api import NoWorker
from owm.directory import Peer as DirectoryPeer
from tests.api._gateway import Served, raw
from tests.peer._peers import address, hub, peer, running, until

QUERY = {"query": "Hello"}
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


async def test_requests_are_counted_by_route_and_status_and_tokens_by_kind(gateway: Served) -> None:
    async with gateway.client() as client:
        for path in ("/v1/query", "/v1/query/stream"):
            assert (await client.post(path, json=QUERY)).status_code == 200
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        await client.post("/v1/query", json={"query": 1})
        gateway.network.fault = lambda: (_ for _ in ()).throw(NoWorker("nobody", retry_after=5))
        assert (await client.post("/v1/query/stream", json=QUERY)).status_code == 503
        for number in range(3):
            await client.get(f"/nothing/{number}")
            await client.get(f"/v1/query/qry_{number}")
    await raw(gateway.port, b"nonsense\r\n\r\n")
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in gateway.registry.collect()
        for sample in family.samples
        if sample.name == "owm_api_requests_total"
    }
    assert counted == {
        ("/v1/query", "200"): 1,
        ("/v1/query", "422"): 1,
        ("/v1/query/stream", "200"): 1,
        ("/v1/query/stream", "503"): 1,
        ("/v1/chat/completions", "200"): 1,
        ("/v1/query/<query_id>", "404"): 3,  # the pattern: what a client writes names no series
        ("other", "404"): 3,
        ("other", "400"): 1,
    }
    assert value(gateway.registry, "owm_api_tokens_total", kind="completion") == 9
    assert value(gateway.registry, "owm_api_tokens_total", kind="prompt") == 9
    assert value(gateway.registry, "owm_api_first_token_seconds_count") == 3
    assert value(gateway.registry, "owm_api_request_seconds_count", route="/v1/query") == 2


async def test_models_are_looked_up_rarely_and_the_first_one_shows_at_once(autojump_clock: MockClock) -> None:
    """Every response names the default model's version, and the directory may hold thousands of peers."""
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        assert gateway.backend.models() == ()
        await peers.start(peer(net, "worker", ["worker"], [address(gateway)]))
        await until(lambda: len(gateway.directory.peers()) == 1)
        assert [model.kind for model in gateway.backend.models()] == ["chat", "embedding"]
        found = gateway.backend.models()
        looks = 0
        whole = gateway.directory.peers

        def counted() -> list[DirectoryPeer]:
            nonlocal looks
            looks += 1
            return whole()

        gateway.directory.peers = counted  # type: ignore[method-assign]
        for _ in range(1000):
            assert gateway.backend.models() == found
        assert looks <= 1
        await trio.sleep(1)
        looks = 0  # others looked meanwhile
        assert gateway.backend.models() == found
        assert looks == 1
