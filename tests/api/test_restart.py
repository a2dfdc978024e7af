"""A worker dies while it answers: the client learns of it in its dialect's way, and never gets two answers glued.

Every word carries its worker's name, so a piece of the lost answer in the new one would show.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.api._gateway import NamedEngine, World, gateway_before

pytestmark = pytest.mark.slow

WORDS = 30
QUERY = {"query": "Tell me", "max_tokens": WORDS}
CHAT = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": WORDS}
Kill = Callable[[World, int], None]


def lose_machine(world: World, number: int) -> None:
    world.kill(number)


def crash_engine(world: World, number: int) -> None:
    world.engines[number].crash()


def break_connection(world: World, number: int) -> None:
    """The network between the two is cut; the worker lives on, unreachable."""
    gateway, worker = (peer.parts.identity.peer_id for peer in (world.gateway, world.workers[number]))
    world.hub.partition([gateway], [worker])


DEATHS = pytest.mark.parametrize("kill", [lose_machine, crash_engine])  # a cut is noticed after ten seconds only


@asynccontextmanager
async def workers(folder: Path, *names: str, pace: float = 0.02) -> AsyncIterator[World]:
    engines = [NamedEngine(name, slots=4, tokens=WORDS, pace=pace) for name in names]
    async with gateway_before(folder, engines) as world:
        yield world


def name_of(world: World, number: int) -> str:
    engine = world.engines[number]
    assert isinstance(engine, NamedEngine)
    return engine.name


def who_said(text: str) -> set[str]:
    return {word[-1] for word in text.split()}


class Sse:
    """The events of a stream as they come: (name, data)."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.seen: list[tuple[str, Any]] = []
        self.bytes = ""

    async def next(self) -> tuple[str, Any] | None:
        name = "message"
        async for line in self._lines:
            self.bytes += line
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                self.seen.append((name, data if data == "[DONE]" else json.loads(data)))
                return self.seen[-1]
        return None

    async def rest(self) -> None:
        while await self.next():
            pass

    def names(self) -> list[str]:
        """With runs of the same event drawn together."""
        found = [name for name, _ in self.seen]
        return [name for at, name in enumerate(found) if at == 0 or found[at - 1] != name]


def no_peer_is_named(world: World, text: str) -> None:
    for peer in (world.gateway, *world.workers):
        assert str(peer.parts.identity.peer_id) not in text
        assert peer.parts.identity.peer_id.short not in text


@pytest.mark.parametrize("kill", [lose_machine, crash_engine, break_connection])
async def test_a_stream_says_restart_and_gives_the_whole_new_answer(tmp_path: Path, kill: Kill) -> None:
    """SRS-API-05: the event `restart` voids what came before it."""
    async with workers(tmp_path, "A", "B") as world, world.client() as client:
        async with client.stream("POST", "/v1/query/stream", json=QUERY) as response:
            stream = Sse(response)
            for _ in range(5):
                await stream.next()
            lost = await world.busy()
            kill(world, lost)
            await stream.rest()
        again = (await client.get(f"/v1/query/{response.headers['X-OWM-Query-Id']}")).json()
    assert stream.names() == ["token", "restart", "token", "done"]
    cut = [name for name, _ in stream.seen].index("restart")
    before = "".join(data["text"] for _, data in stream.seen[:cut])
    after = "".join(data["text"] for name, data in stream.seen[cut:] if name == "token")
    assert len(before.split()) >= 5
    assert who_said(before) == {name_of(world, lost)}
    assert who_said(after) == {name_of(world, 1 - lost)}
    assert len(after.split()) == WORDS
    done = stream.seen[-1][1]
    assert done["answer"] == after
    assert done["attempts"] == 2
    assert again == done
    assert stream.seen[cut][1]["reason"]
    no_peer_is_named(world, stream.bytes)


@DEATHS
async def test_an_openai_stream_that_has_begun_ends_in_one_error(tmp_path: Path, kill: Kill) -> None:
    """The dialect cannot take text back, so nothing of another worker's answer may follow."""
    async with (
        workers(tmp_path, "A", "B") as world,
        world.client() as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response,
    ):
        stream = Sse(response)
        for _ in range(6):  # the role comes first
            await stream.next()
        lost = await world.busy()
        kill(world, lost)
        await stream.rest()
        await world.idle()
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200
    chunks = [data for _, data in stream.seen]
    errors = [chunk for chunk in chunks if "error" in chunk]
    assert errors == chunks[-1:]  # one, and nothing after it, not even [DONE]
    assert errors[0]["error"]["type"] == "server_error"
    text = "".join(choice["delta"].get("content", "") for chunk in chunks[:-1] for choice in chunk["choices"])
    assert who_said(text) == {name_of(world, lost)}
    assert 5 <= len(text.split()) < WORDS
    no_peer_is_named(world, stream.bytes)


@DEATHS
@pytest.mark.parametrize("path", ["/v1/query", "/v1/chat/completions"])
async def test_an_answer_that_is_not_streamed_is_reassigned_without_a_word(
    tmp_path: Path, kill: Kill, path: str
) -> None:
    async with workers(tmp_path, "A", "B") as world, world.client() as client, trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await client.post(path, json=CHAT if "chat" in path else QUERY))

        nursery.start_soon(ask)
        lost = await world.busy()
        with trio.fail_after(5):
            while world.engines[lost].generated < 5:  # noqa: ASYNC110
                await trio.sleep(0.01)
        kill(world, lost)
    (response,) = answers
    assert response.status_code == 200
    found = response.json()
    text = found["choices"][0]["message"]["content"] if "chat" in path else found["answer"]
    assert who_said(text) == {name_of(world, 1 - lost)}
    assert len(text.split()) == WORDS
    assert "chat" in path or found["attempts"] == 2
    assert world.gateway.backend.statistics().tasks_reassigned == 1


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/query/stream", QUERY), ("/v1/chat/completions", {**CHAT, "stream": True})]
)
async def test_a_worker_lost_before_its_first_token_is_replaced_without_a_word(
    tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    """There is nothing to take back yet, in either dialect."""
    async with workers(tmp_path, "A", "B", pace=0.3) as world, world.client() as client, trio.open_nursery() as nursery:
        streams: list[Sse] = []

        async def ask() -> None:
            async with client.stream("POST", path, json={**body, "max_tokens": 3}) as response:
                assert response.status_code == 200
                streams.append(Sse(response))
                await streams[0].rest()

        nursery.start_soon(ask)
        lost = await world.busy()
        lose_machine(world, lost)
    (stream,) = streams
    assert stream.names() == (["token", "done"] if "query" in path else ["message"])
    assert "error" not in stream.bytes
    assert (name_of(world, 1 - lost) + '"') in stream.bytes
    assert (name_of(world, lost) + '"') not in stream.bytes


@pytest.mark.parametrize("path", ["/v1/query", "/v1/query/stream"])
async def test_with_no_worker_left_there_is_one_clear_problem(tmp_path: Path, path: str) -> None:
    """Before the first token it is the response itself; it says when to try again."""
    async with workers(tmp_path, "A", pace=0.3) as world, world.client() as client, trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await client.post(path, json=QUERY))

        nursery.start_soon(ask)
        lose_machine(world, await world.busy())
        with trio.fail_after(15):
            while not answers:  # noqa: ASYNC110
                await trio.sleep(0.05)
        answers.append(await client.post(path, json=QUERY))  # and so is the next one's
    for response in answers:
        assert response.status_code == 503
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["Retry-After"] == "5"
        assert response.json()["type"] == "urn:owm:problem:no-worker"
        no_peer_is_named(world, response.text)


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/query/stream", QUERY), ("/v1/chat/completions", {**CHAT, "stream": True})]
)
async def test_a_stream_whose_last_worker_dies_ends_in_one_error(
    tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    async with (
        workers(tmp_path, "A") as world,
        world.client() as client,
        client.stream("POST", path, json=body) as response,
    ):
        stream = Sse(response)
        for _ in range(6):
            await stream.next()
        lose_machine(world, 0)
        with trio.fail_after(15):
            await stream.rest()
    if "query" in path:
        assert stream.names() == ["token", "restart", "error"]
        assert (stream.seen[-1][1]["status"], stream.seen[-1][1]["type"]) == (503, "urn:owm:problem:no-worker")
    assert [("error" in str(data)) for _, data in stream.seen].count(True) == (0 if "query" in path else 1)
    assert [name for name, _ in stream.seen].count("error") == (1 if "query" in path else 0)
    no_peer_is_named(world, stream.bytes)
