"""Leaving the engine at any moment frees its slot, and what comes next is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest
import trio

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token, engine_of
from owm.model._jobs import Jobs
from owm.model._process import EngineProcess
from owm.model.errors import PromptTooLong, ReaderTooSlow

pytestmark = pytest.mark.slow

MOMENTS = (0.0, 0.001, 0.02, 0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def folder() -> str:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    for card in SHIPPED.values():
        cache.pull(card)
    return str(cache.folder)


async def generate(engine: Engine, tokens: int) -> tuple[int, Done | None]:
    request = GenerateRequest(messages=(ChatMessage("user", "Count from one to ten."),), max_tokens=tokens)
    count = 0
    async with engine.generate(request) as items:
        async for item in items:
            if isinstance(item, Done):
                return count, item
            assert isinstance(item, Token)
            count += 1
    return count, None


async def test_generations_cancelled_at_any_moment_leave_the_engine_whole(folder: str) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=2, context=512))
    async with engine.running():
        for moment in MOMENTS:
            with trio.move_on_after(moment):
                await generate(engine, 400)
            with trio.fail_after(10):
                count, done = await generate(engine, 4)
            assert done is not None and 0 < count <= 4
        with trio.fail_after(5):
            while engine.statistics().busy:  # noqa: ASYNC110 - another process tells when it has noticed
                await trio.sleep(0.02)


async def test_embeddings_and_counts_cancelled_at_any_moment_leave_the_engine_whole(folder: str) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=512))
    texts = ["a sentence about the weather in spring " * 8] * 32
    async with engine.running():
        for moment in (0.0, 0.001, 0.01, 0.05):
            with trio.move_on_after(moment):
                await engine.embed(texts)
            with trio.move_on_after(moment):
                await engine.count_tokens((ChatMessage("user", "how many?"),))
            with trio.fail_after(20):
                found = await engine.embed(["one"])
            assert len(found.vectors) == 1
            assert await engine.count_tokens((ChatMessage("user", "how many?"),)) > 2


async def test_starting_can_be_cancelled_at_any_moment_and_leaves_no_process(folder: str) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for moment in (0.0, 0.01, 0.1, 0.5):
        engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=512))
        with trio.move_on_after(moment):
            async with engine.running():
                await trio.sleep_forever()
        with trio.fail_after(5):
            while {c.pid for c in psutil.Process().children(recursive=True)} - before:  # noqa: ASYNC110
                await trio.sleep(0.02)


def cpu_of(engine: Engine) -> float:
    """Seconds of CPU that the engine has used: unlike the wall's, they do not depend on what else runs here."""
    pid = engine.statistics().pid
    assert pid is not None
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def spent_after_leaving(
    engine: Engine, work: Callable[[], Awaitable[object]], next_one: Callable[[], Awaitable[object]]
) -> float:
    """CPU seconds from leaving ``work`` in its midst to the end of ``next_one``, which needs the same place."""
    before = cpu_of(engine)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            while cpu_of(engine) - before < 0.6:  # noqa: ASYNC110 - another process uses it
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        left = cpu_of(engine)
        await next_one()
    return cpu_of(engine) - left


async def test_leaving_while_the_prompt_is_read_frees_the_engine_within_a_second(folder: str) -> None:
    """Reading it to its end takes ten seconds or more."""
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=2048, embedding=""))
    long = GenerateRequest(messages=(ChatMessage("user", "the river went on " * 440),), max_tokens=8)

    async def read_long() -> None:
        async with engine.generate(long) as items:
            async for _ in items:
                raise AssertionError("the prompt was read before it could be left")

    async with engine.running():
        assert 1700 < await engine.count_tokens(long.messages) < 2000
        alone = cpu_of(engine)
        await generate(engine, 1)
        alone = cpu_of(engine) - alone
        assert await spent_after_leaving(engine, read_long, lambda: generate(engine, 1)) - alone < 1.0


async def test_leaving_embeddings_frees_the_engine_within_a_second(folder: str) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=512))
    texts = ["word " * 200] * 128
    async with engine.running():
        spent = await spent_after_leaving(engine, lambda: engine.embed(texts), lambda: engine.embed(["one"]))
        assert spent < 1.0


async def test_embeddings_of_one_request_are_bounded(folder: str) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=512))
    async with engine.running():
        before = cpu_of(engine)
        with pytest.raises(PromptTooLong, match="32768 tokens"):
            await engine.embed(["word " * 300] * 129)
        assert cpu_of(engine) - before < 2.0  # they are counted, not embedded


async def test_an_answer_that_nobody_reads_is_cancelled_and_the_engine_lives_on(folder: str) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=folder, slots=1, context=2048, embedding=""))
    process = EngineProcess(engine._child_settings(), backlog=4)  # type: ignore[attr-defined]
    job = {
        "op": "generate",
        "messages": [{"role": "user", "content": "Tell a long story."}],
        "temperature": 0,
        "top_p": 1,
        "seed": 0,
        "stop": [],
    }
    async with process.running():
        assert process.pid is not None
        child = psutil.Process(process.pid)
        async with process.call(**job, max_tokens=1500) as unread:
            # The slot is free for the next one long before 1,500 tokens could have been written.
            with trio.fail_after(60):
                async with process.call(**job, max_tokens=2) as answer:
                    read = [message async for message in _until_done(answer)]
            assert child.cpu_times().user < 8.0
            with pytest.raises(ReaderTooSlow):
                async for _ in unread:
                    pass
        assert read[-1]["completion"] == 2
        assert not process.ended.is_set()


async def _until_done(answer: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for message in answer:
        yield message
        if "done" in message:
            return


def test_cancelling_what_is_over_leaves_nothing_behind() -> None:
    jobs = Jobs()
    jobs.begin(1)
    jobs.cancel(1)
    assert jobs.is_cancelled(1)
    jobs.end(1)
    jobs.cancel(1)
    assert len(jobs) == 0
    jobs.begin(1)
    assert not jobs.is_cancelled(1)
