"""Answers with characters of several tokens, from the real engine to the requester's check of the receipt."""

from __future__ import annotations

import pytest

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token, engine_of
from owm.model._gguf import vocabulary
from tests.model._servers import llama_server, settings

pytestmark = pytest.mark.slow

QUESTIONS = ("List five emojis.", "你好,你叫什么名字?", "Napiš žluťoučký kůň.")


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    found = ModelCache(expand(ModelSettings().model_cache_dir))
    for card in SHIPPED.values():
        found.pull(card)
    return found


async def whole(engine: Engine, question: str, tokens: int, stop: tuple[str, ...] = ()) -> tuple[list[Token], Done]:
    request = GenerateRequest(messages=(ChatMessage("user", question),), max_tokens=tokens, stop=stop)
    found: list[Token] = []
    async with engine.generate(request) as items:
        async for item in items:
            if isinstance(item, Done):
                return found, item
            found.append(item)
    raise AssertionError("no end")


async def test_every_token_of_an_answer_is_told(cache: ModelCache) -> None:
    """Their ids spell the text, byte for byte, and are as many as the engine counts."""
    card = SHIPPED["smollm2-135m-instruct"]
    words = vocabulary(cache.path(card))
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in seen}
    letters |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in seen)}
    several = 0
    async with engine_of(ModelSettings(model_cache_dir=str(cache.folder), slots=1, embedding="")).running() as engine:
        for question in QUESTIONS:
            for most in (60, 25):
                tokens, done = await whole(engine, question, most)
                assert len(tokens) == done.completion_tokens <= most
                text = "".join(token.text for token in tokens)
                ids = [token.id for token in tokens]
                while ids and ids[-1] in (-1, 2):  # a character cut short; the end of the text
                    ids.pop()
                assert -1 not in ids
                spelt = bytes(letters[letter] for number in ids for letter in words.tokens[number][0])
                assert spelt == text.encode()
                several += sum(not token.text for token in tokens)
        assert several > 40
        tokens, done = await whole(engine, QUESTIONS[0], 60, ("🌟",))
        assert len(tokens) == done.completion_tokens


async def test_a_foreign_servers_characters_are_counted_by_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends them as one piece each, and says only at the end how many tokens they were."""
    with llama_server() as (url, _):
        async with engine_of(settings(url, monkeypatch)).running() as engine:
            request = GenerateRequest(messages=(ChatMessage("user", QUESTIONS[0]),), max_tokens=60)
            async with engine.generate(request) as items:
                found = [item async for item in items]
    *tokens, done = found
    assert isinstance(done, Done)
    assert len(tokens) == done.completion_tokens
    assert sum(isinstance(item, Token) and not item.text for item in tokens) > 10
