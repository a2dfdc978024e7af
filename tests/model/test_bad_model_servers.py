"""Servers behind a worker that misbehave, die and come back: never an answer that is none, never memory without end."""

from __future__ import annotations

import itertools
import json
import zlib

import pytest
import trio
from trio.testing import MockClock

from owm.errors import ConfigError
from owm.model import GenerateRequest, Token, engine_of
from owm.model.errors import EngineCrashed, EngineError, InvalidRequest, PromptTooLong
from tests.model._servers import QUESTION, WORD, answer, event, scripted, settings


@pytest.mark.parametrize(
    ("parts", "status", "error", "words"),
    [
        ([WORD, WORD], 200, EngineCrashed, "ended its answer early"),
        ([WORD, b"data: {nonsense\n\n"], 200, EngineError, "not JSON"),
        ([b"data: [1, 2]\n\n"], 200, EngineError, "dialect"),
        ([event(error={"message": "out of memory"})], 200, EngineError, "out of memory"),
        ([event(choices=[7])], 200, EngineError, "dialect"),
        ([event(choices=["text"])], 200, EngineError, "dialect"),
        ([event(choices={"delta": {}})], 200, EngineError, "dialect"),
        ([event(choices=[{"delta": "word"}])], 200, EngineError, "dialect"),
        ([event(choices=[{"delta": {"content": ["word"]}}])], 200, EngineError, "dialect"),
        ([event(choices=[], usage={"prompt_tokens": "many"})], 200, EngineError, "dialect"),
        ([event(choices=[], usage={"prompt_tokens": -1})], 200, EngineError, "dialect"),
        ([WORD] * 40, 200, EngineError, "more than was asked for"),
        ([b"data: \xff\xfe\n\n"], 200, EngineError, "not JSON"),
        ([b'data: {"error": ' + b"[" * 100_000 + b"\n\n"], 200, EngineError, "not JSON"),
        ([b"data: " + b"x" * (2 << 20) + b"\n\n"], 200, EngineError, "without end"),
        ([b'{"error": "overloaded"}'], 503, EngineError, "503"),
        ([b'{"error": "bad temperature"}'], 400, InvalidRequest, "bad temperature"),
        ([b'{"error": "exceeds the context size"}'], 400, PromptTooLong, "context"),
    ],
)
async def test_what_a_bad_server_says_is_an_error_and_never_an_answer(
    parts: list[bytes], status: int, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(parts, status) as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            with pytest.raises(error, match=words):
                await answer(engine)
            assert engine.statistics().busy == 0


@pytest.mark.parametrize("start", [b"data: ", b"", b": comment"])
async def test_a_line_that_never_ends_is_refused_while_it_is_read(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 256 << 20
    async with scripted(itertools.chain([start], itertools.repeat(b"x" * 65536, many // 65536))) as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            with pytest.raises(EngineError, match="without end"):
                await answer(engine)
            assert server.sent < 16 << 20  # what the kernel's buffers took, not what was offered


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end_is_refused_while_it_is_read(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(itertools.repeat(b"x" * 65536, 4096), status) as server:
        engine = engine_of(settings(server.url, monkeypatch, embedding="vectors"))
        async with engine.running():
            with pytest.raises(EngineError, match="at once"):
                await engine.embed(["a cat"])
            assert server.sent < (16 << 20) + (64 << 20 if status == 200 else 0)


async def test_a_compressed_answer_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(WORD * 100_000, wbits=31)
    async with scripted([bomb], head=b"Content-Encoding: gzip\r\n") as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            with pytest.raises(EngineError, match="compressed"):
                await answer(engine)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": [{"index": 0, "embedding": [1.0, 0.0]}]}, "another number"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}, "another number"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]}, "several lengths"),
        ({"data": [{"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": [1.0]}]}, "without a direction"),
        ({"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": [1.0]}]}, "dialect"),
        ({"data": [7, 8]}, "dialect"),
        ({"data": None}, "dialect"),
        ([1, 2], "dialect"),
    ],
)
async def test_vectors_that_do_not_fit_the_texts_are_an_error(
    body: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted([json.dumps(body).encode()]) as server:
        engine = engine_of(settings(server.url, monkeypatch, embedding="vectors"))
        async with engine.running():
            with pytest.raises(EngineError, match=words):
                await engine.embed(["a cat", "a dog"])


async def test_vectors_come_in_the_order_of_the_texts_and_of_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"index": 1, "embedding": [0.0, 3.0]}, {"index": 0, "embedding": [4.0, 3.0]}]
    async with scripted([json.dumps({"data": rows, "usage": {"prompt_tokens": 4}}).encode()]) as server:
        engine = engine_of(settings(server.url, monkeypatch, embedding="vectors"))
        async with engine.running():
            found = await engine.embed(["a cat", "a dog"])
    assert found.vectors == ((0.8, 0.6), (0.0, 1.0)) and found.prompt_tokens == 4
    assert found.model_sha256 == engine.models[1].sha256


@pytest.mark.parametrize("models", [b"nonsense", b"[]", b'{"data": [7]}', b'{"data": {"id": "llama-server"}}'])
async def test_a_list_of_models_that_is_none_is_no_server(models: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(models=models) as server:
        engine = engine_of(settings(server.url, monkeypatch))
        with pytest.raises(EngineError, match=r"model\.url"):
            async with engine.running():
                pass


async def test_an_embedding_model_that_the_server_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as server:
        engine = engine_of(settings(server.url, monkeypatch, embedding="nonesuch"))
        with pytest.raises(ConfigError, match=r"model\.embedding: .* 'nonesuch', but llama-server, vectors"):
            async with engine.running():
                pass


async def test_a_server_that_fails_gets_no_work_until_it_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done = event(choices=[{"delta": {}, "finish_reason": "stop"}]) + b"data: [DONE]\n\n"
    async with scripted([WORD, done]) as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            assert engine.statistics().ready
            server.away = True
            with pytest.raises(EngineCrashed):
                await answer(engine)
            assert not engine.statistics().ready
            asked = server.asked
            with pytest.raises(EngineCrashed, match="does not answer"):
                await answer(engine)
            assert server.asked == asked  # refused here, not tried there
            server.away = False
            with trio.fail_after(10):
                await engine.readiness_changed()
            assert engine.statistics().ready
            assert [token.text for token in (await answer(engine))[0]] == ["word "]


async def test_a_token_is_handed_on_before_the_next_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted([WORD]) as server:
        server.hold = True
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            request = GenerateRequest(messages=QUESTION, max_tokens=5)
            with trio.fail_after(5):
                async with engine.generate(request) as items:
                    async for item in items:
                        assert isinstance(item, Token) and item.text == "word "
                        break


async def test_one_bad_answer_of_a_server_that_lives_costs_a_look_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted([WORD]) as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            with pytest.raises(EngineCrashed, match="early"):
                await answer(engine)
            with trio.fail_after(2):
                await engine.readiness_changed()
            assert engine.statistics().ready and server.looked == 2


async def test_an_idle_server_that_dies_is_noticed_and_asked_with_back_off(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.2  # real sockets: time jumps only when they are silent
    async with scripted() as server:
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            server.away = True
            with trio.fail_after(35):
                await engine.readiness_changed()
            assert not engine.statistics().ready
            await trio.sleep(70)
            server.away = False
            with trio.fail_after(31):
                await engine.readiness_changed()
            assert engine.statistics().ready


async def test_cancellation_while_a_server_says_nothing_is_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted([WORD]) as server:
        server.hold = True
        engine = engine_of(settings(server.url, monkeypatch))
        async with engine.running():
            with trio.move_on_after(0.3) as scope:
                await answer(engine)
            assert scope.cancelled_caught
            assert engine.statistics().busy == 0
