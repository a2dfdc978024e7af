"""Attacks on a gateway's HTTP API: clients that leave, stop reading, half-close, flood, or come under another name."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from owm.model.testing import StandInEngine
from tests.api._gateway import World, api_settings, gateway_before

pytestmark = pytest.mark.slow

ZOMBIES = 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A gateway and one worker with four slots; a client has half a second to take what is written to it."""
    engine = StandInEngine(slots=4, tokens=40, pace=0.01, context=40_000)
    async with gateway_before(tmp_path, [engine]) as found:
        yield found


async def connect(port: int) -> trio.socket.SocketType:
    """A connection whose window is a few kilobytes."""
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await client.connect(("127.0.0.1", port))
    return client


def request(world: World, path: str, tokens: int) -> bytes:
    body = b'{"query": "Hello", "max_tokens": %d}' % tokens
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def begin_stream(world: World, tokens: int) -> trio.socket.SocketType:
    """A stream whose first bytes have arrived."""
    client = await connect(world.port)
    await client.send(request(world, "/v1/query/stream", tokens))
    with trio.fail_after(10):
        assert (await client.recv(64)).startswith(b"HTTP/1.1 200")
    return client


@pytest.mark.attack("A1")
async def test_a_client_that_leaves_before_the_body_starts_frees_its_slot(world: World) -> None:
    client = await connect(world.port)
    await client.send(request(world, "/v1/query", 40))
    await world.busy()
    began = trio.current_time()
    client.close()
    await world.idle()
    assert trio.current_time() - began < 1.0
    assert world.engine.generated < 40
    assert world.engine.cancelled == 1


@pytest.mark.attack("A1")
async def test_a_client_that_leaves_before_the_first_token_of_a_stream_frees_its_slot(world: World) -> None:
    """Nothing of the response has been sent then: a generator's `finally` would never run."""
    world.engine.pace = 30.0
    client = await connect(world.port)
    await client.send(request(world, "/v1/query/stream", 40))
    await world.busy()
    began = trio.current_time()
    client.close()
    await world.idle()
    assert trio.current_time() - began < 1.0
    assert (world.engine.generated, world.engine.cancelled) == (0, 1)


@pytest.mark.attack("A2")
@pytest.mark.parametrize("path", ["/v1/query/stream", "/v1/chat/completions"])
async def test_a_client_that_leaves_mid_stream_frees_its_slot_within_a_second(world: World, path: str) -> None:
    body: dict[str, object] = {"query": "Hello", "max_tokens": 40}
    if "chat" in path:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40, "stream": True}
    world.engine.pace = 0.1
    async with world.client() as client, client.stream("POST", path, json=body) as response:
        async for _ in response.aiter_lines():
            break
        began = trio.current_time()
    await world.idle()
    assert trio.current_time() - began < 1.0
    assert world.engine.generated < 20
    assert world.engine.cancelled == 1


@pytest.mark.attack("A3")
async def test_a_client_that_stops_reading_holds_no_worker(world: World) -> None:
    """Its window stays shut; the write deadline here is half a second."""
    world.engine.tokens, world.engine.pace = 30_000, 0.0
    client = await begin_stream(world, 30_000)
    began = trio.current_time()
    await world.idle(5)
    assert trio.current_time() - began < 2.5
    assert world.gateway.backend.statistics().tasks_completed == 0
    assert world.engine.cancelled == 1
    client.close()


@pytest.mark.attack("A3")
async def test_what_a_stalled_client_has_not_read_stays_with_the_worker(tmp_path: Path) -> None:
    """Every queue between the engine and the socket is bounded, so a stalled client stops the engine itself."""
    engine = StandInEngine(slots=4, tokens=30_000, context=40_000)
    async with gateway_before(tmp_path, [engine], api_settings(write_timeout=8.0)) as world:
        client = await begin_stream(world, 30_000)
        before, now = -1, 0
        with trio.fail_after(6):
            while now != before:
                before = now
                await trio.sleep(0.5)
                now = engine.generated
        assert engine.statistics().busy == 1  # it still waits; only the deadline will end it
        assert 0 < engine.generated < 6000
        client.close()
        await world.idle()


@pytest.mark.attack("A3b")
async def test_a_half_closed_client_frees_its_slot_within_a_second(world: World) -> None:
    """It says that it will send no more, keeps its side open and reads nothing: nobody can tell it from a dead one."""
    world.engine.tokens, world.engine.pace = 2000, 0.005
    client = await begin_stream(world, 2000)
    began = trio.current_time()
    client.shutdown(socket.SHUT_WR)
    await world.idle()
    assert trio.current_time() - began < 1.0
    assert world.engine.generated < 300  # of 2000
    assert world.engine.cancelled == 1
    client.close()


@pytest.mark.attack("A3b")
async def test_a_crowd_of_half_closed_clients_costs_no_memory_and_delays_nobody(world: World) -> None:
    """Five for each slot; whoever comes after them is served, and what they held is given back."""
    world.engine.tokens, world.engine.pace = 2000, 0.005

    async def zombie() -> None:
        client = await connect(world.port)
        await client.send(request(world, "/v1/query/stream", 2000))
        if await client.recv(64):
            client.shutdown(socket.SHUT_WR)
        zombies.append(client)

    zombies: list[trio.socket.SocketType] = []
    async with world.client() as honest:
        assert (await honest.post("/v1/query", json={"query": "warm up", "max_tokens": 2})).status_code == 200
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for _ in range(ZOMBIES):
                        nursery.start_soon(zombie)
                began = trio.current_time()
                answer = await honest.post("/v1/query", json={"query": "And me?", "max_tokens": 2})
            assert answer.status_code == 200
            assert trio.current_time() - began < 2.0
            await world.idle()
            gc.collect()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert world.engine.cancelled == ZOMBIES
    assert world.engine.generated < ZOMBIES * 300
    assert peak - before < 16 * 2**20
    assert after - before < 2 * 2**20
    for client in zombies:
        client.close()


@pytest.mark.attack("A9")
async def test_a_page_on_a_rebound_name_reaches_nothing(world: World) -> None:
    """Not the answers, not the network's state, not the page's session."""
    async with world.client(Host="evil.example") as client:
        for method, path in [("POST", "/v1/query"), ("GET", "/v1/network/stats"), ("GET", "/"), ("GET", "/nowhere")]:
            response = await client.request(method, path, json={"query": "x"} if method == "POST" else None)
            assert response.status_code == 421
            assert "set-cookie" not in response.headers
            assert "Access-Control-Allow-Origin" not in response.headers
    assert world.engine.generated == 0


@pytest.mark.attack("A11")
async def test_a_flood_of_huge_prompts_reaches_no_worker(world: World) -> None:
    async with world.client() as client:
        for _ in range(10):
            chat = {"messages": [{"role": "user", "content": "word " * 50_000}]}
            assert (await client.post("/v1/chat/completions", json=chat)).status_code == 400
            assert (await client.post("/v1/query", json={"query": "word " * 50_000})).status_code == 413
            texts = {"input": ["short", "word " * 50_000]}
            assert (await client.post("/v1/embeddings", json=texts)).status_code == 400
            huge = {"query": "word " * 500_000}
            assert (await client.post("/v1/query", json=huge)).status_code == 413
    assert world.engine.generated == 0
    statistics = world.gateway.backend.statistics()
    assert (statistics.tasks_completed, statistics.tasks_failed, statistics.tasks_running) == (0, 0, 0)


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.attack("A10")
async def test_http2_rapid_resets_find_no_http2(world: World) -> None:
    """A preface and 5,000 requests that are each reset at once: one refusal, no task, and others are served."""
    headers = b"\x82\x87\x84\x41\x09127.0.0.1"  # GET https / with an authority
    flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")
    for number in range(5000):
        stream = 2 * number + 1
        flood += h2_frame(1, 5, stream, headers) + h2_frame(3, 0, stream, b"\0\0\0\x08")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        answers = []
        for _ in range(20):
            client = trio.socket.socket()
            await client.connect(("127.0.0.1", world.port))
            got = b""
            try:
                with trio.fail_after(10):
                    await _send_all(client, flood)
                    while piece := await client.recv(65536):
                        got += piece
            except OSError:
                pass  # reset while we were still sending
            finally:
                client.close()
            answers.append(got)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(len(answer) < 4096 and b" 200 " not in answer.split(b"\r\n")[0] for answer in answers)
    assert after - before < 2 * 2**20
    assert world.gateway.backend.statistics().tasks_running == 0
    async with world.client() as client:
        response = await client.post("/v1/query", json={"query": "Hello", "max_tokens": 2})
        assert response.status_code == 200


@pytest.mark.attack("A10")
async def test_an_upgrade_to_http2_is_not_taken(world: World) -> None:
    client = trio.socket.socket()
    await client.connect(("127.0.0.1", world.port))
    await client.send(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    )
    got = b""
    with trio.fail_after(10):
        while piece := await client.recv(65536):
            got += piece
    client.close()
    assert got.startswith(b"HTTP/1.1 200") and b"101 " not in got.split(b"\r\n")[0]


async def _send_all(client: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await client.send(view) :]
