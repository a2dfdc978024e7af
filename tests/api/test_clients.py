"""The gateway's API over real sockets, with real clients, in front of real peers on a memory network."""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest
import trio

from tests.api._gateway import World

pytestmark = pytest.mark.slow


def talk(url: str, key: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "Hello there"}]
    chat = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=5, seed=-3)
    pieces, usage = [], None
    for chunk in client.chat.completions.create(
        model="stand-in", messages=messages, max_tokens=5, seed=-3, stream=True, stream_options={"include_usage": True}
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


async def test_who_has_no_valid_key_is_turned_away(world: World) -> None:
    async with world.client(Authorization="Bearer owm_wrong") as client:
        assert (await client.post("/v1/query", json={"query": "x"})).status_code == 401
    assert world.engine.generated == 0
