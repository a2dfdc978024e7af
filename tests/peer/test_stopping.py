"""A peer's end (SRS-NODE-09): it says so at once, takes nothing new, completes what runs, cuts what takes too long."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from benchmarks._standin import parts_of
from owm.api import Busy, Stopping
from owm.api._work import Work
from owm.cli._local import local_key
from owm.model.testing import StandInEngine
from owm.peer import Peer
from tests.peer._peers import address, ask, hub, peer, running, until
from tests.peer._process import PeerProcess, get, peer_process

QUERY = {"query": "Tell me", "max_tokens": 64}
CHAT = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 64, "stream": True}


async def test_what_runs_is_waited_for_as_long_as_a_query_may_take(autojump_clock: MockClock) -> None:
    work = Work(2, 120.0)
    ended: list[float] = []

    async def one() -> None:
        with work.one():
            await trio.sleep(100)
        ended.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
        await trio.sleep(1)
        with pytest.raises(Busy), work.one():
            pass
        nursery.start_soon(work.drain, 120.0)
        await trio.sleep(1)
        with pytest.raises(Stopping) as refused, work.one():
            pass
        assert refused.value.retry_after == 5
    assert [round(at - began) for at in ended] == [100, 100]
    assert round(trio.current_time() - began) == 100  # and no longer


async def test_what_takes_longer_is_cut_and_told_why(autojump_clock: MockClock) -> None:
    work = Work(2, 120.0)
    began = trio.current_time()
    told: list[Stopping] = []

    async def one() -> None:
        with pytest.raises(Stopping) as cut, work.one():
            await trio.sleep_forever()
        told.append(cut.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await trio.sleep(1)
        assert not await work.drain(30.0)
    assert round(trio.current_time() - began) == 31
    assert "ask again" in told[0].detail


async def test_a_stopping_worker_completes_a_task_of_a_hundred_seconds_and_takes_no_other(
    autojump_clock: MockClock,
) -> None:
    net = hub()
    engine = StandInEngine(tokens=6, pace=16.0)
    async with running() as peers, trio.open_nursery() as nursery:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        leave = trio.Event()
        worker = peer(net, "worker", ["worker"], [address(gateway)], engine=engine)

        async def serve() -> None:
            async with worker.running():
                await leave.wait()
                worker.stop()

        nursery.start_soon(serve)
        await until(lambda: len(gateway.directory.peers()) == 1)
        answers: list[str] = []

        async def client() -> None:
            answers.append((await ask(gateway, timeout=120))[0])

        nursery.start_soon(client)
        await until(lambda: engine.statistics().busy == 1)
        leave.set()
        await until(lambda: worker.status == "stopping")
        assert not worker.health().ready
        with pytest.raises(Exception, match="no worker"):
            await ask(gateway, timeout=10)
        await until(lambda: bool(answers), 120)
        assert answers[0].count("word") == 6
        assert engine.cancelled == 0


async def test_a_worker_that_is_cancelled_does_not_wait(autojump_clock: MockClock) -> None:
    """A second signal stops at once."""
    net = hub()
    engine = StandInEngine(tokens=6, pace=16.0)
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = await peers.start(peer(net, "worker", ["worker"], [address(gateway)], engine=engine))
        await until(lambda: len(gateway.directory.peers()) == 1)
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                with pytest.raises(Exception, match="no worker"):
                    await ask(gateway, timeout=60)

            nursery.start_soon(client)
            await until(lambda: engine.statistics().busy == 1)
            began = trio.current_time()
            await peers.kill(worker)
            assert trio.current_time() - began < 1


async def test_a_gateway_says_whether_it_knows_a_worker(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        assert (gateway.health().checks["workers"], gateway.health().ready, gateway.health().status) == (
            False,
            False,
            "ok",
        )
        await peers.start(peer(net, "worker", ["worker"], [address(gateway)]))
        await until(lambda: gateway.health().ready)


class Gateway:
    """A gateway process, and a worker in this one that answers one word every 50 ms."""

    def __init__(self, process: PeerProcess, found: dict[str, Any], engine: StandInEngine) -> None:
        self.process = process
        self.engine = engine
        self.health = str(found["health_url"])
        self.client = httpx.AsyncClient(
            base_url=found["api_url"],
            headers={"Authorization": f"Bearer {local_key(process.folder)}"},
            timeout=30,
        )


@asynccontextmanager
async def gateway(folder: Path, *, tokens: int, **settings: str) -> AsyncIterator[Gateway]:
    async with peer_process(folder / "gateway", "--roles", "gateway", "--api-port", "0", **settings) as process:
        found = await process.running()
        engine = StandInEngine(tokens=tokens, pace=0.05)
        parts = replace(parts_of("worker", found["addresses"][0]), engine=engine)
        async with Peer(parts).running():
            made = Gateway(process, found, engine)
            async with made.client:
                with trio.fail_after(20):
                    while (await get(made.health, "/readyz")).status_code != 200:  # noqa: ASYNC110
                        await trio.sleep(0.1)
                yield made


async def stream(made: Gateway, path: str, body: dict[str, Any], begun: trio.Event, lines: list[str]) -> None:
    async with made.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            lines.append(line)
            if len(lines) > 6:
                begun.set()


@pytest.mark.slow
async def test_a_gateway_that_is_told_to_stop_completes_its_streams(tmp_path: Path) -> None:
    async with gateway(tmp_path, tokens=40) as made, trio.open_nursery() as nursery:
        begun, lines = trio.Event(), list[str]()
        nursery.start_soon(stream, made, "/v1/query/stream", QUERY, begun, lines)
        await begun.wait()
        made.process.signal(signal.SIGTERM)
        with trio.fail_after(1):
            while (ready := await get(made.health, "/readyz")).status_code == 200:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert ready.json()["status"] == "stopping"
        assert (await get(made.health, "/health")).status_code == 503
        assert (await get(made.health, "/livez")).status_code == 200
        assert (await get(made.health, "/local/status")).json()["state"] == "stopping"
        async with httpx.AsyncClient(base_url=made.client.base_url, headers=made.client.headers) as other:
            refused = await other.post("/v1/query", json=QUERY)
            chat = await other.post("/v1/chat/completions", json=CHAT)
            balancer = await other.get("/healthz")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:owm:problem:stopping")
        assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("5", "close")
        assert (chat.status_code, chat.json()["error"]["code"], balancer.status_code) == (503, "stopping", 503)
        assert await made.process.ended(15) == 0
    done = json.loads(lines[-2].removeprefix("data: "))
    assert lines[-3] == "event: done"
    assert done["answer"].count("word") == 40
    assert not (made.process.folder / "peer.json").exists()
    assert "Traceback" not in made.process.log()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), [("/v1/query/stream", QUERY), ("/v1/chat/completions", CHAT)])
async def test_a_stream_that_must_be_cut_gets_one_error(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with (
        gateway(tmp_path, tokens=5000, OWM_NODE_STOP_TIMEOUT="0.5") as made,
        trio.open_nursery() as nursery,
    ):
        begun, lines = trio.Event(), list[str]()
        nursery.start_soon(stream, made, path, {**body, "max_tokens": 1000}, begun, lines)
        await begun.wait()
        made.process.signal(signal.SIGTERM)
        assert await made.process.ended(8) == 0
    data = json.loads([line for line in lines if line][-1].removeprefix("data: "))
    if "query" in path:
        assert ([line for line in lines if line][-2], data["type"]) == ("event: error", "urn:owm:problem:stopping")
    else:
        assert data["error"]["code"] == "stopping"
        assert [("error" in line) for line in lines].count(True) == 1
        assert "data: [DONE]" not in lines
    assert made.engine.cancelled == 1


@pytest.mark.slow
async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, tokens=5000) as made, trio.open_nursery() as nursery:
        begun, lines = trio.Event(), list[str]()

        async def cut() -> None:
            with pytest.raises(httpx.TransportError):
                await stream(made, "/v1/query/stream", {**QUERY, "max_tokens": 1000}, begun, lines)

        nursery.start_soon(cut)
        await begun.wait()
        made.process.signal(signal.SIGTERM)
        with trio.fail_after(2):
            while (await get(made.health, "/readyz")).status_code == 200:  # noqa: ASYNC110
                await trio.sleep(0.01)
        made.process.signal(signal.SIGINT)
        assert await made.process.ended(3) == 0


async def silent(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@pytest.mark.slow
async def test_a_peer_tells_that_it_starts_while_its_engine_does(tmp_path: Path) -> None:
    """Health is served before anything that takes time; here the worker's model server does not answer yet."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, silent, listeners)
        settings = {"OWM_MODEL_ENGINE": "openai", "OWM_MODEL_URL": url, "OWM_MODEL_EMBEDDING": ""}
        async with peer_process(tmp_path / "worker", "--roles", "worker", **settings) as process:
            health = await process.health_url()
            for path, status in (("/livez", 200), ("/health", 200), ("/readyz", 503), ("/metrics", 200)):
                assert (await get(health, path)).status_code == status, path
            assert (await get(health, "/health")).json()["status"] == "starting"
            assert (await get(health, "/local/status")).json()["state"] == "starting"
            assert not (process.folder / "peer.json").exists()
            process.signal(signal.SIGTERM)  # nothing runs yet, so there is nothing to wait for
            assert await process.ended(5) == 0
        nursery.cancel_scope.cancel()
