"""llama.cpp's own OpenAI-compatible server behind a worker."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import trio

from owm.config import ModelSettings
from owm.errors import ConfigError
from owm.identity import Identity
from owm.model import ChatMessage, Done, GenerateRequest, engine_of
from owm.model.errors import EngineCrashed, EngineError, InvalidRequest, PromptTooLong
from tests.model._servers import QUESTION, answer, llama_server, scripted, settings


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with llama_server() as (url, _):
        yield url


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


def test_no_two_workers_and_no_two_models_have_one_hash() -> None:
    """Everybody's server is at 127.0.0.1:8000 and serves the same name: that says nothing of what it computes."""
    given = ModelSettings(engine="openai", url="http://127.0.0.1:8000/v1", chat="llama", embedding="llama")
    owners = [Identity(bytes([n]) * 32).peer_id for n in range(2)]
    first, other = (engine_of(given, owner).models for owner in owners)
    assert len({model.sha256 for model in (*first, *other)}) == 4
    assert engine_of(given, owners[0]).models == first
    assert all(len(model.sha256) == 64 for model in first)


def test_settings_that_cannot_work_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.url"):
        engine_of(ModelSettings(engine="openai"))
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="NOT_SET"):
        engine_of(ModelSettings(engine="openai", url="http://127.0.0.1:1/v1", api_key_env="NOT_SET"))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "http://127.0.0.1:port/v1", "http://[::1/v1", "http:///v1", "x y"]
)
async def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    engine = engine_of(ModelSettings(engine="openai", url=url, embedding=""))
    with pytest.raises((ConfigError, EngineError), match=r"model\.url"):
        async with engine.running():
            pass


async def test_no_server_at_the_url_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(settings("http://127.0.0.1:9", monkeypatch))
    with pytest.raises(EngineError, match=r"model\.url: no OpenAI-compatible server answers"):
        async with engine.running():
            pass


async def test_the_manifest_of_such_a_worker_says_that_it_is_unaudited(monkeypatch: pytest.MonkeyPatch) -> None:
    from owm.config import NodeSettings, Settings, load_constitution
    from owm.hardware import Hardware
    from owm.roles._manifest import ManifestSource
    from tests.peer._peers import hub, peer

    plain = peer(hub(), "somebody", ["gateway"])
    async with scripted() as server:
        engine = engine_of(settings(server.url, monkeypatch))
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
