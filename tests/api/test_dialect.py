"""Fields of requests are done or refused by name, never passed over; what is answered has OpenAI's form."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from owm.records import ServedModel
from tests.api._gateway import MODEL, Served, World

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "f"}}


async def chat(gateway: Served, **change: object) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post("/v1/chat/completions", json={**CHAT, **change})


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(chunk) for chunk in data]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"n": 2}, "n"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_k": 40}, "top_k"),
        ({"max_token": 5}, "max_token"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ],
)
async def test_what_is_not_done_is_refused_by_name(gateway: Served, change: dict[str, object], param: str) -> None:
    response = await chat(gateway, **change)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert gateway.network.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [], "tool_choice": "none", "functions": None, "response_format": {"type": "text"}},
        {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "modalities": ["text"]},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"logprobs": False, "top_logprobs": None, "stream": False, "stream_options": None},
    ],
)
async def test_what_asks_for_nothing_is_accepted(gateway: Served, change: dict[str, object]) -> None:
    assert (await chat(gateway, **change)).status_code == 200


async def test_an_assistant_s_turn_may_be_empty(gateway: Served) -> None:
    """As clients send it back: a message of OpenAI's with all its fields."""
    turn = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    response = await chat(gateway, messages=[{"role": "user", "content": "a"}, turn, {"role": "user", "content": "b"}])
    assert response.status_code == 200
    assert [message.content for message in gateway.network.asked[0].messages] == ["a", "", "b"]


async def test_dimensions_are_refused_by_name(gateway: Served) -> None:
    async with gateway.client() as client:
        response = await client.post("/v1/embeddings", json={"input": "x", "dimensions": 8})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "dimensions")
        response = await client.post("/v1/embeddings", json={"input": "x", "truncate": True})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "truncate")
    assert gateway.network.embedded == []


async def test_with_usage_all_but_the_last_chunk_say_null(gateway: Served) -> None:
    found = chunks(await chat(gateway, stream=True, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert (found[-1]["usage"]["total_tokens"], found[-1]["choices"]) == (6, [])
    assert all("usage" not in chunk for chunk in chunks(await chat(gateway, stream=True)))


@pytest.mark.slow
async def test_log_probabilities_are_told_when_asked_for(world: World) -> None:
    async with world.client() as client:
        body = {**CHAT, "max_tokens": 5, "seed": 1, "logprobs": True}
        whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
        streamed = chunks(await client.post("/v1/chat/completions", json={**body, "stream": True}))
        without = (await client.post("/v1/chat/completions", json={**body, "logprobs": False})).json()["choices"][0]
    told = whole["logprobs"]["content"]
    assert [entry["logprob"] for entry in told] == [-0.5] * 5
    assert "".join(entry["token"] for entry in told) == whole["message"]["content"]
    assert bytes(told[0]["bytes"]).decode() == told[0]["token"]
    pieces = [choice["logprobs"] for chunk in streamed for choice in chunk["choices"] if choice["logprobs"]]
    assert [entry for piece in pieces for entry in piece["content"]] == told
    assert without["logprobs"] is None


async def test_an_impossible_token_is_a_number_all_the_same(gateway: Served) -> None:
    gateway.network.logprob = -math.inf
    (first, *_) = (await chat(gateway, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert first["logprob"] == -9999.0


async def test_the_context_of_a_query_is_an_open_object(gateway: Served) -> None:
    """SRS 4.8.3."""
    async with gateway.client() as client:
        body = {"query": "x", "context": {"region": "Cascadia", "messages": [{"role": "user", "content": "before"}]}}
        assert (await client.post("/v1/query", json=body)).status_code == 200
    assert [message.content for message in gateway.network.asked[0].messages] == ["before", "x"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/query", "/v1/chat/completions"])
async def test_the_version_is_that_of_the_model_which_answers(gateway: Served, path: str, stream: bool) -> None:
    """SRS-API-01; though it is not the network's first model."""
    other = ServedModel("other", "cd" * 32, "chat", 2048)
    gateway.network.served = (other, MODEL)
    body = {"query": "x"} if "query" in path else {**CHAT, "model": MODEL.id}
    async with gateway.client() as client:
        response = await client.post(path, json={**body, "stream": stream})
        assert response.headers["X-OWM-Model-Version"] == MODEL.sha256[:12]
        assert (await client.get("/healthz")).headers["X-OWM-Model-Version"] == other.sha256[:12]
