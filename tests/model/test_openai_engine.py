"""A foreign server behind a worker: llama.cpp's own OpenAI-compatible one, and servers that misbehave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import psutil
import pytest
import trio

from owm.config import ModelSettings, expand
from owm.errors import ConfigError
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token, engine_of
from owm.model.errors import EngineCrashed, EngineError, InvalidRequest, PromptTooLong

KEY = "a-secret-for-the-server"
QUESTION = (ChatMessage("user", "What is the capital of France?"),)


@contextmanager
def llama_server(*more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    card = SHIPPED["smollm2-135m-instruct"]
    cache.pull(card)
    weights = next((cache.folder / card.id).glob("*.gguf"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.model._llama_server", str(weights), KEY, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "llama.cpp's server did not start"
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with llama_server() as (url, _):
        yield url


def settings(url: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> ModelSettings:
    monkeypatch.setenv("TEST_ENGINE_KEY", KEY)
    base = {
        "engine": "openai",
        "url": f"{url}/v1",
        "api_key_env": "TEST_ENGINE_KEY",
        "chat": "llama-server",
        "embedding": "",
    }
    return ModelSettings(**{**base, **changes})  # type: ignore[arg-type]


async def answer(engine: Engine, **changes: object) -> tuple[list[Token], Done]:
    tokens: list[Token] = []
    request = GenerateRequest(**{"messages": QUESTION, "max_tokens": 16, "temperature": 0.0, **changes})  # type: ignore[arg-type]
    async with engine.generate(request) as items:
        async for item in items:
            if isinstance(item, Done):
                return tokens, item
            tokens.append(item)
    raise AssertionError("the answer had no end")


@pytest.mark.slow
async def test_llama_cpps_server_answers_through_the_engine(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(settings(server, monkeypatch))
    async with engine.running():
        assert engine.kind == "openai"
        assert [model.id for model in engine.models] == ["llama-server"]
        tokens, done = await answer(engine)
        again, _ = await answer(engine)
        text = "".join(token.text for token in tokens)
        assert text and text == "".join(token.text for token in again)
        assert 0 < done.completion_tokens <= 16 and done.prompt_tokens > 5
        assert done.finish in ("stop", "length")
        assert engine.statistics().busy == 0 and engine.statistics().ready
    assert not engine.statistics().ready


@pytest.mark.slow
async def test_slots_are_used_side_by_side(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(settings(server, monkeypatch, slots=2))
    ends: list[Done] = []
    async with engine.running(), trio.open_nursery() as nursery:

        async def one(seed: int) -> None:
            ends.append((await answer(engine, seed=seed))[1])

        for seed in range(4):
            nursery.start_soon(one, seed)
    assert len(ends) == 4


@pytest.mark.slow
async def test_leaving_stops_the_servers_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with llama_server() as (url, process):
        engine = engine_of(settings(url, monkeypatch))
        async with engine.running():
            request = GenerateRequest(messages=QUESTION, max_tokens=400, temperature=1.0)
            async with engine.generate(request) as items:
                async for _ in items:
                    break
            assert engine.statistics().busy == 0
            await trio.sleep(1.0)  # a real server in another process is given time to notice
            before = psutil.Process(process.pid).cpu_times().user
            await trio.sleep(1.0)
            assert psutil.Process(process.pid).cpu_times().user - before < 0.3


@pytest.mark.slow
async def test_a_prompt_beyond_the_context_is_the_askers_fault(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(settings(server, monkeypatch))
    async with engine.running():
        with pytest.raises((PromptTooLong, InvalidRequest)):
            await answer(engine, messages=(ChatMessage("user", "word " * 3000),))
        assert (await answer(engine))[0]


@pytest.mark.slow
async def test_a_server_that_dies_fails_the_task_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with llama_server() as (url, process):
        engine = engine_of(settings(url, monkeypatch))
        async with engine.running():
            with pytest.raises(EngineCrashed):
                request = GenerateRequest(messages=QUESTION, max_tokens=400, temperature=1.0)
                async with engine.generate(request) as items:
                    async for _ in items:
                        process.kill()
            with pytest.raises(EngineError):
                await answer(engine)


@pytest.mark.slow
async def test_embeddings_come_from_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with llama_server("embedding") as (url, _):
        engine = engine_of(settings(url, monkeypatch, embedding="llama-server"))
        async with engine.running():
            found = await engine.embed(["a cat", "a dog", "a cat"])
            assert len(found.vectors) == 3 and len(found.vectors[0]) == 576
            assert found.vectors[0] == pytest.approx(found.vectors[2], abs=1e-3)
            assert sum(value * value for value in found.vectors[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
async def test_a_wrong_key_and_an_unknown_model_stop_the_worker_with_words(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(settings(server, monkeypatch, chat="gpt-9"))
    with pytest.raises(ConfigError, match="llama-server"):
        async with engine.running():
            pass
    monkeypatch.setenv("OTHER_KEY", "wrong")
    engine = engine_of(settings(server, monkeypatch, api_key_env="OTHER_KEY"))
    with pytest.raises(ConfigError, match=r"model\.api_key_env"):
        async with engine.running():
            pass


def test_settings_that_cannot_work_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.url"):
        engine_of(ModelSettings(engine="openai"))
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="NOT_SET"):
        engine_of(ModelSettings(engine="openai", url="http://127.0.0.1:1/v1", api_key_env="NOT_SET"))


async def test_no_server_at_the_url_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(settings("http://127.0.0.1:9", monkeypatch))
    with pytest.raises(EngineError, match=r"model\.url: no OpenAI-compatible server answers"):
        async with engine.running():
            pass


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


WORD = event(choices=[{"delta": {"content": "word "}}])


@asynccontextmanager
async def scripted(parts: list[bytes], status: int = 200, hold: bool = False) -> AsyncIterator[str]:
    """A server that answers every chat with these bytes, and lists one model."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head or (head.startswith(b"POST") and not head.endswith(b"}")):
            head += await stream.receive_some(65536)
        models = json.dumps({"data": [{"id": "llama-server"}]}).encode()
        if head.startswith(b"GET"):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(models) + models)
        else:
            await stream.send_all(b"HTTP/1.1 %d X\r\nConnection: close\r\n\r\n" % status)
            for part in parts:
                await stream.send_all(part)
            if hold:
                await trio.sleep_forever()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("parts", "status", "error", "words"),
    [
        ([WORD, WORD], 200, EngineCrashed, "ended its answer early"),
        ([WORD, b"data: {nonsense\n\n"], 200, EngineError, "not JSON"),
        ([b"data: [1, 2]\n\n"], 200, EngineError, "not an object"),
        ([event(error={"message": "out of memory"})], 200, EngineError, "out of memory"),
        ([b"data: " + b"x" * (2 << 20) + b"\n\n"], 200, EngineError, "without end"),
        ([b'{"error": "overloaded"}'], 503, EngineError, "503"),
        ([b'{"error": "bad temperature"}'], 400, InvalidRequest, "bad temperature"),
        ([b'{"error": "exceeds the context size"}'], 400, PromptTooLong, "context"),
    ],
)
async def test_what_a_bad_server_says_is_an_error_and_never_an_answer(
    parts: list[bytes], status: int, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(parts, status) as url:
        engine = engine_of(settings(url, monkeypatch))
        async with engine.running():
            with pytest.raises(error, match=words):
                await answer(engine)
            assert engine.statistics().busy == 0


async def test_cancellation_while_a_server_says_nothing_is_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted([WORD], hold=True) as url:
        engine = engine_of(settings(url, monkeypatch))
        async with engine.running():
            with trio.move_on_after(0.3) as scope:
                await answer(engine)
            assert scope.cancelled_caught
            assert engine.statistics().busy == 0


async def test_the_manifest_of_such_a_worker_says_that_it_is_unaudited(monkeypatch: pytest.MonkeyPatch) -> None:
    from owm.config import NodeSettings, Settings, load_constitution
    from owm.hardware import Hardware
    from owm.roles._manifest import ManifestSource
    from tests.peer._peers import hub, peer

    plain = peer(hub(), "somebody", ["gateway"])
    async with scripted([]) as url:
        engine = engine_of(settings(url, monkeypatch))
        async with engine.running():
            source = ManifestSource(
                Settings(node=NodeSettings(roles=("worker",))),
                load_constitution("devnet"),
                plain.parts.network,
                Hardware((), 16_000),
                plain.bandwidth,
                b"n" * 16,
            )
            source.engine = engine
            manifest = source.manifest(1, ("worker",))
            assert manifest.unaudited and manifest.engine == "openai"
            assert [model.id for model in manifest.models] == ["llama-server"]
