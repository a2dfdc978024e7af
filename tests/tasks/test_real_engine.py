"""The real engine behind a real worker, asked by a real requester."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, Engine, ModelCache, engine_of
from owm.tasks import Completed, InferenceTask, Message, TokenEvent
from tests.tasks.world import World, world

pytestmark = pytest.mark.slow


@asynccontextmanager
async def real_world() -> AsyncIterator[tuple[World, Engine]]:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    for card in SHIPPED.values():
        cache.pull(card)
    settings = ModelSettings(model_cache_dir=str(cache.folder), slots=2, context=512, embedding="")
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
