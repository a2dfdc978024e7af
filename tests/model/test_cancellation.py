"""Leaving the engine at any moment frees its slot, and what comes next is answered."""

from __future__ import annotations

import psutil
import pytest
import trio

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token, engine_of

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
