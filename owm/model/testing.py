"""A stand-in engine for tests, the simulator and load benchmarks. No configuration can choose it.

It answers with words made from the prompt's hash, at once or at a set pace, and behaves like a real engine in what
matters to the network: slots, bounded context, cancellation, crashes on demand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import trio

from owm.model._interface import (
    ChatMessage,
    Done,
    Embeddings,
    Engine,
    EngineStatistics,
    GenerateRequest,
    Token,
)
from owm.model.errors import EngineCrashed, InvalidRequest, PromptTooLong
from owm.records import ServedModel

__all__ = ["StandInEngine"]

_CHAT: Final = "stand-in"
_EMBEDDING: Final = "stand-in-embedding"
_SHA256: Final = hashlib.sha256(b"stand-in").hexdigest()
_DIMENSIONS: Final = 16


class StandInEngine(Engine):
    """Deterministic: the same messages and seed give the same words.

    Args:
        slots: generations that run at once; more wait.
        tokens: words per answer, unless the request asks for fewer.
        pace: seconds per token.
        context: words that a prompt may have.
    """

    kind = "stand-in"

    def __init__(self, *, slots: int = 4, tokens: int = 12, pace: float = 0.0, context: int = 2048) -> None:
        self._slots = trio.CapacityLimiter(slots)
        self.tokens = tokens
        self.pace = pace
        self._context = context
        self._waiting = 0
        self._crash = trio.Event()
        self._changed = trio.Event()
        self._ready = True
        self.generated = 0
        self.cancelled = 0  #: generations that were left before they ended

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (
            ServedModel(_CHAT, _SHA256, "chat", self._context),
            ServedModel(_EMBEDDING, _SHA256, "embedding", 256),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        yield self

    def set_ready(self, ready: bool) -> None:
        """Go away as a whole, or come back."""
        self._ready = ready
        self._changed.set()
        self._changed = trio.Event()
        if not ready:
            self.crash()

    async def readiness_changed(self) -> None:
        await self._changed.wait()

    def crash(self) -> None:
        """Fail everything that runs, as when the engine's process dies; work that comes later runs again."""
        self._crash.set()
        self._crash = trio.Event()

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Token | Done]]:
        if not self._ready:
            raise EngineCrashed("the engine is not running")
        if request.model not in ("", _CHAT):
            raise InvalidRequest(f"this worker does not serve the model {request.model!r}")
        prompt = await self.count_tokens(request.messages)
        if prompt >= self._context:
            raise PromptTooLong(f"the prompt has {prompt} tokens; the context is {self._context}")
        finished = [False]
        async with self._slots:
            try:
                yield self._items(request, prompt, finished)
            finally:
                if not finished[0]:
                    self.cancelled += 1

    async def _items(self, request: GenerateRequest, prompt: int, finished: list[bool]) -> AsyncIterator[Token | Done]:
        crash = self._crash
        count = min(self.tokens, request.max_tokens)
        text = "\0".join(message.content for message in request.messages)
        digest = hashlib.sha256(f"{request.seed}:{text}".encode()).digest()
        for index in range(count):
            await trio.sleep(self.pace)
            if crash.is_set():
                raise EngineCrashed("the engine died while it answered")
            self.generated += 1
            number = digest[index % 32] + index
            yield Token(("" if index == 0 else " ") + f"word{number}", number, -0.5)
        finished[0] = True
        yield Done(
            finish="length" if count < self.tokens else "stop",
            prompt_tokens=prompt,
            completion_tokens=count,
            model=_CHAT,
            model_sha256=_SHA256,
        )

    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings:
        if model not in ("", _EMBEDDING):
            raise InvalidRequest(f"this worker does not serve the embedding model {model!r}")
        await trio.lowlevel.checkpoint()
        vectors = []
        for text in texts:
            raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:_DIMENSIONS]]
            length = math.sqrt(sum(value * value for value in raw))
            vectors.append(tuple(value / length for value in raw))
        return Embeddings(
            vectors=tuple(vectors),
            prompt_tokens=sum(len(text.split()) for text in texts),
            model=_EMBEDDING,
            model_sha256=_SHA256,
        )

    async def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        await trio.lowlevel.checkpoint()
        return sum(len(message.content.split()) + 2 for message in messages)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            ready=self._ready,
            slots=int(self._slots.total_tokens),
            busy=self._slots.borrowed_tokens,
            generated_tokens=self.generated,
        )
