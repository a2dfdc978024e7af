"""What the rest of OWM knows of an engine: something that generates text and embeds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

import msgspec
import trio

from owm.records import ServedModel

__all__ = ["ChatMessage", "Done", "Embeddings", "Engine", "EngineStatistics", "GenerateRequest", "Token"]


class ChatMessage(msgspec.Struct, frozen=True):
    role: str  #: "system", "user" or "assistant"
    content: str


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate. The model card's system prompt is put first unless the messages bring their own."""

    messages: tuple[ChatMessage, ...]
    model: str = ""  #: a served model's id; empty for the engine's chat model
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Token(msgspec.Struct, frozen=True):
    """One token of an answer. ``text`` may be empty while a character is incomplete; it comes with its last token."""

    text: str
    id: int  #: -1 where the engine does not say
    logprob: float  #: natural logarithm; nan where the engine does not say


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The last item of every generation."""

    finish: str  #: "stop" or "length"
    prompt_tokens: int
    completion_tokens: int
    model: str
    model_sha256: str
    template_sha256: str = ""  #: of the chat template used


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Unit-length vectors, one per input, in its order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    model: str
    model_sha256: str


class EngineStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state, for manifests and metrics."""

    ready: bool = False
    slots: int = 0
    busy: int = 0
    pid: int | None = None
    restarts: int = 0
    resident_mib: float = 0.0
    generated_tokens: int = 0


class Engine(ABC):
    """Runs models. Everything it raises is an EngineError (owm.model.errors)."""

    kind: str  #: goes into the manifest: "llama.cpp", "openai", "stand-in"

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[Self]:
        """Start, wait until ready, restart after crashes, stop at the end of the block."""

    @property
    @abstractmethod
    def models(self) -> tuple[ServedModel, ...]: ...

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Token | Done]]:
        """Stream an answer: tokens, then one Done. Leaving the block cancels the work and frees its slot.

        Raises:
            PromptTooLong, InvalidRequest: before any token.
            EngineCrashed: the engine process died; it is being restarted.
        """

    @abstractmethod
    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings: ...

    @abstractmethod
    async def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """The length of the rendered prompt."""

    @abstractmethod
    def statistics(self) -> EngineStatistics: ...

    async def readiness_changed(self) -> None:
        """Return once ``statistics().ready`` has changed. An engine that is back within seconds need not say so."""
        await trio.sleep_forever()
