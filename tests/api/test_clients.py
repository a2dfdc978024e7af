"""The gateway's API over real sockets, with real clients, in front of real peers on a memory network."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
import pytest
import trio

from owm.api import KeyStore, create_app, serve
from owm.config import ApiSettings, NodeSettings, Settings, load_constitution
from owm.directory.joining import Lead
from owm.hardware import Hardware
from owm.identity import Identity
from owm.model.testing import StandInEngine
from owm.net import Link, MemoryHub
from owm.peer import Parts, Peer, limits_of
from owm.store import Store

pytestmark = pytest.mark.slow


class Clock:
    def time(self) -> float:
        return 1_800_000_000.0 + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


class World:
    """A gateway and one worker, and where the gateway listens."""

    url: str
    key: str
    engine: StandInEngine
    gateway: Peer

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}", **headers}, timeout=20
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    constitution = load_constitution("devnet")
    hub = MemoryHub(Random(1), Link(latency=0.001))
    found = World()
    found.engine = StandInEngine(slots=4, tokens=40, pace=0.01)
    gateway_address = ""
    async with AsyncExitStack() as stack:
        for role in ("gateway", "worker"):
            settings = Settings(node=NodeSettings(roles=(role,)))
            identity = Identity(Random(role).randbytes(32))
            network = hub.network(identity, limits=limits_of(settings, constitution))
            address = gateway_address

            async def source(address: str = address) -> list[Lead]:
                return [Lead(None, address)]

            peer = Peer(
                Parts(
                    identity=identity,
                    settings=settings,
                    constitution=constitution,
                    network=network,
                    store=Store(None),
                    clock=Clock(),
                    random=Random(2),
                    secrets=Random(role + "secret"),
                    hardware=Hardware((), 16_000),
                    engine=found.engine if role == "worker" else None,
                    sources=[("test", source)] if address else [],
                )
            )
            await stack.enter_async_context(peer.running())
            if role == "gateway":
                found.gateway = peer
                gateway_address = network.addresses[0]
        with trio.fail_after(20):
            while not found.gateway.directory.peers():  # noqa: ASYNC110
                await trio.sleep(0.05)
        keys = KeyStore(tmp_path / "keys.sqlite")
        found.key = keys.add("test", 0).secret
        api = ApiSettings(port=0, write_timeout=0.5, max_prompt_tokens=200)
        app = create_app(found.gateway.backend, api, keys, clock=Clock())
        found.url = await stack.enter_async_context(serve(app, api, grace=0.5))
        yield found
    keys.close()


def talk(url: str, key: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "Hello there"}]
    chat = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=5)
    pieces, usage = [], None
    for chunk in client.chat.completions.create(
        model="stand-in", messages=messages, max_tokens=5, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    plain = client.embeddings.create(model="stand-in-embedding", input=["a", "b"], encoding_format="float")
    coded = client.embeddings.create(model="stand-in-embedding", input="a")
    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
        missing = ""
    except openai.NotFoundError as error:
        missing = str(error)
    return {
        "chat": chat,
        "streamed": "".join(pieces),
        "usage": usage,
        "models": [model.id for model in client.models.list()],
        "plain": plain,
        "coded": coded,
        "missing": missing,
    }


async def test_the_openai_client_chats_streams_lists_and_embeds(world: World) -> None:
    said = await trio.to_thread.run_sync(talk, world.url, world.key)
    chat = said["chat"]
    assert chat.choices[0].message.content == said["streamed"] != ""
    assert chat.choices[0].finish_reason == "length"
    assert (chat.usage.completion_tokens, said["usage"].completion_tokens) == (5, 5)
    assert said["models"] == ["stand-in", "stand-in-embedding"]
    assert len(said["plain"].data) == 2
    assert said["coded"].data[0].embedding == pytest.approx(said["plain"].data[0].embedding)
    assert "no-such-model" in said["missing"]


async def test_base64_embeddings_are_little_endian_floats(world: World) -> None:
    async with world.client() as client:
        body = {"input": "a", "encoding_format": "base64"}
        found = (await client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
        plain = (await client.post("/v1/embeddings", json={"input": "a"})).json()["data"][0]["embedding"]
    raw = base64.b64decode(found)
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain)


async def test_a_query_has_the_form_that_was_asked_for_and_can_be_fetched_again(world: World) -> None:
    """SRS 4.8.3, SRS-API-01."""
    async with world.client() as client:
        response = await client.post("/v1/query", json={"query": "Hello", "max_tokens": 4})
        body = response.json()
        again = await client.get(f"/v1/query/{body['query_id']}")
        stranger = await client.get("/v1/query/qry_00000000000000000000000000")
    assert response.status_code == 200
    assert body["sub_models_used"] == ["stand-in"]
    assert (body["data_sources"], body["confidence"], body["ots_verified"], body["cost_sats"]) == ([], None, False, 0)
    assert response.headers["X-OWM-Model-Version"] == body["model_version"] == world.engine.models[0].sha256[:12]
    assert response.headers["X-OWM-OTS-Verified"] == "false"
    assert again.json() == body
    assert stranger.status_code == 404
    assert stranger.headers["Content-Type"] == "application/problem+json"


async def test_many_requests_on_one_connection_are_all_answered(world: World) -> None:
    async with world.client() as client:
        for number in range(25):
            body = {"query": f"Number {number}", "max_tokens": 1}
            assert (await client.post("/v1/query", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"query": 1}', 422),
        (b'{"query": "x", "nonsense": 1}', 422),
        (b'{"query": "%s"}' % (b"word " * 1000), 413),
    ],
)
async def test_bad_bodies_are_problems_that_say_what_is_wrong(world: World, body: bytes, status: int) -> None:
    """SRS-API-04; and nothing runs for them."""
    async with world.client() as client:
        response = await client.post("/v1/query", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert response.json()["status"] == status
    assert response.json()["detail"]
    assert world.engine.generated == 0


@pytest.mark.attack("A11")
async def test_a_flood_of_huge_prompts_reaches_no_worker(world: World) -> None:
    async with world.client() as client:
        for _ in range(10):
            body = {"messages": [{"role": "user", "content": "word " * 50_000}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
    assert world.engine.generated == 0
    assert world.gateway.backend.statistics().tasks_completed == 0


@pytest.mark.attack("A9")
async def test_who_has_no_key_or_another_host_is_turned_away(world: World) -> None:
    async with world.client(Authorization="Bearer owm_wrong") as client:
        assert (await client.post("/v1/query", json={"query": "x"})).status_code == 401
    async with world.client(Host="evil.example") as client:
        assert (await client.get("/v1/network/stats")).status_code == 421


async def _idle(world: World) -> None:
    with trio.fail_after(1.5):
        while world.engine.statistics().busy or world.gateway.backend.statistics().tasks_running:  # noqa: ASYNC110
            await trio.sleep(0.02)


@pytest.mark.attack("A2")
async def test_a_client_that_leaves_mid_stream_frees_its_slot_within_a_second(world: World) -> None:
    async with (
        world.client() as client,
        client.stream("POST", "/v1/query/stream", json={"query": "Hello", "max_tokens": 40}) as response,
    ):
        async for _ in response.aiter_lines():
            break
    await _idle(world)
    assert world.engine.generated < 40


@pytest.mark.attack("A1")
async def test_a_client_that_leaves_before_the_body_starts_frees_its_slot(world: World) -> None:
    port = int(world.url.rsplit(":", 1)[1])
    body = b'{"query": "Hello", "max_tokens": 40}'
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await stream.send_all(head.encode() + body)
    with trio.fail_after(5):
        while not world.engine.statistics().busy:  # noqa: ASYNC110
            await trio.sleep(0.01)
    await trio.aclose_forcefully(stream)
    await _idle(world)
    assert world.engine.generated < 40


@pytest.mark.attack("A3")
async def test_a_client_that_stops_reading_holds_no_worker(world: World) -> None:
    """Its window stays shut; the write deadline here is half a second."""
    world.engine.tokens, world.engine.pace = 4000, 0.0
    socket = trio.socket.socket()
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await socket.connect(("127.0.0.1", int(world.url.rsplit(":", 1)[1])))
    body = b'{"query": "Hello", "max_tokens": 2000}'
    head = (
        f"POST /v1/query/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await socket.send(head.encode() + body)
    assert await socket.recv(64)
    began = trio.current_time()
    with trio.fail_after(5):
        while world.engine.statistics().busy or world.gateway.backend.statistics().tasks_running:  # noqa: ASYNC110
            await trio.sleep(0.02)
    assert trio.current_time() - began < 2.5
    assert world.gateway.backend.statistics().tasks_completed == 0
    socket.close()
