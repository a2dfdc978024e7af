"""The real engine behind a real worker, asked by a real requester."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
import trio

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, Engine, ModelCache, engine_of
from owm.tasks import Completed, InferenceTask, Message, TokenEvent
from tests.tasks.world import World, world

pytestmark = pytest.mark.slow


@asynccontextmanager
async def real_world(context: int = 512) -> AsyncIterator[tuple[World, Engine]]:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    for card in SHIPPED.values():
        cache.pull(card)
    settings = ModelSettings(model_cache_dir=str(cache.folder), slots=1, context=context, embedding="")
    async with engine_of(settings).running() as engine, world() as made:
        peer = await made.add_worker(engine=engine)
        made.directory.note(peer.manifest(int(made.clock.time() * 1000) + 1, models=engine.models))
        yield made, engine


async def test_answers_with_characters_of_several_tokens_are_proved() -> None:
    async with real_world() as (made, _):
        for text in ("List five emojis.", "你好,你叫什么名字?"):
            task = InferenceTask(messages=(Message("user", text),), max_tokens=60)
            async with made.requester.inference(task) as events:
                seen = [event async for event in events]
            done = seen[-1]
            assert isinstance(done, Completed) and done.attempts == 1
            tokens = [event for event in seen if isinstance(event, TokenEvent)]
            assert len(tokens) == done.details.completion_tokens
            answer = "".join(event.text for event in tokens)
            assert any(ord(letter) > 127 for letter in answer)
        assert not made.network.statistics().penalties


async def test_leaving_while_the_prompt_is_read_frees_the_workers_engine_within_a_second() -> None:
    """In CPU time of the engine, from leaving to the end of the next answer; reading on would take ten seconds."""
    async with real_world(2048) as (made, engine):
        pid = engine.statistics().pid
        assert pid is not None
        process = psutil.Process(pid)
        long = InferenceTask(messages=(Message("user", "the river went on " * 440),), max_tokens=8)
        before = process.cpu_times().user
        with trio.fail_after(120):
            async with made.requester.inference(long):
                while process.cpu_times().user - before < 0.6:  # noqa: ASYNC110 - another process uses it
                    await trio.sleep(0.02)
            left = process.cpu_times().user
            short = InferenceTask(messages=(Message("user", "Hi"),), max_tokens=1)
            async with made.requester.inference(short) as events:
                seen = [event async for event in events]
        assert isinstance(seen[-1], Completed)
        assert process.cpu_times().user - left < 1.5  # half a second of it is the short prompt's own
