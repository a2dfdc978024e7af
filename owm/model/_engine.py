"""The serving engine: llama.cpp and MiniLM in a process of their own."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import psutil
import structlog
import trio

from owm.config import ModelSettings, expand
from owm.model._cache import ModelCache
from owm.model._cards import ModelCard
from owm.model._interface import (
    ChatMessage,
    Done,
    Embeddings,
    Engine,
    EngineStatistics,
    GenerateRequest,
    Token,
)
from owm.model._process import EngineCall, EngineProcess
from owm.model.errors import EngineCrashed, EngineError, InvalidRequest, PromptTooLong
from owm.records import ServedModel

__all__ = ["LlamaEngine"]

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 30.0
_STABLE: Final = 60.0
_COUNT_DEADLINE: Final = 30.0
_EMBED_DEADLINE: Final = 120.0


class LlamaEngine(Engine):
    """Serves one chat model and, where the settings name one, one embedding model.

    The process is restarted with back-off when it dies; what ran in it fails with EngineCrashed.
    """

    kind = "llama.cpp"

    def __init__(
        self,
        settings: ModelSettings,
        cache: ModelCache | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._cache = cache or ModelCache(expand(settings.model_cache_dir))
        self._chat = self._cache.card(settings.chat)
        self._embedding: ModelCard | None = self._cache.card(settings.embedding) if settings.embedding else None
        self._process: EngineProcess | None = None
        self._busy = 0
        self._changed = trio.Event()
        self._restarts = 0
        self._generated = 0

    @property
    def models(self) -> tuple[ServedModel, ...]:
        chat = ServedModel(self._chat.id, self._chat.sha256, "chat", self._settings.context)
        if self._embedding is None:
            return (chat,)
        return (chat, ServedModel(self._embedding.id, self._embedding.sha256, "embedding", self._embedding.context))

    def _child_settings(self) -> dict[str, Any]:
        """Check every file, then say where they lie; runs in a thread, for it hashes them."""
        found: dict[str, Any] = {
            "weights": str(self._cache.verify(self._chat)),
            "slots": self._settings.slots,
            "context": min(self._settings.context, self._chat.context),
            "threads": self._settings.threads,
            "memory_limit_mib": self._settings.memory_limit_mib,
        }
        if self._embedding is not None:
            weights: Path = self._cache.verify(self._embedding)
            found["embedding"] = {"weights": str(weights), "tokenizer": str(weights.with_name("tokenizer.json"))}
        return found

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Load the models, then keep the process alive.

        Raises:
            ModelMissing, BadWeights: a file is not there, or not what it should be.
        """
        settings = await trio.to_thread.run_sync(self._child_settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._keep_alive, settings)
            yield self
            nursery.cancel_scope.cancel()

    async def _keep_alive(
        self, settings: dict[str, Any], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        backoff = _FIRST_BACKOFF
        started = False
        while True:
            process = EngineProcess(settings, self._environment)
            began = trio.current_time()
            try:
                async with process.running():
                    self._set(process)
                    if not started:
                        started = True
                        task_status.started()
                    await process.ended.wait()
            except EngineError as error:
                if not started:
                    raise
                _log.error("the engine did not start", reason=str(error))
            finally:
                self._set(None)
            self._restarts += 1
            backoff = _FIRST_BACKOFF if trio.current_time() - began > _STABLE else min(backoff * 2, _LONGEST_BACKOFF)
            _log.warning("the engine died and is restarted", wait_seconds=backoff, restarts=self._restarts)
            await trio.sleep(backoff)

    def _set(self, process: EngineProcess | None) -> None:
        if process is not self._process:
            self._process = process
            self._changed.set()
            self._changed = trio.Event()

    async def readiness_changed(self) -> None:
        await self._changed.wait()

    def _running(self) -> EngineProcess:
        if self._process is None:
            raise EngineCrashed("the engine is not running; it is being restarted")
        return self._process

    def _messages(self, messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
        if not messages:
            raise InvalidRequest("a conversation needs at least one message")
        found = [{"role": message.role, "content": message.content} for message in messages]
        if self._chat.system_prompt and not any(message.role == "system" for message in messages):
            found.insert(0, {"role": "system", "content": self._chat.system_prompt})
        return found

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Token | Done]]:
        if request.model not in ("", self._chat.id):
            raise InvalidRequest(f"this worker does not serve the model {request.model!r}")
        if request.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1")
        process = self._running()
        self._busy += 1
        try:
            async with process.call(
                op="generate",
                messages=self._messages(request.messages),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop=list(request.stop),
            ) as incoming:
                yield self._items(process, incoming)
        finally:
            self._busy -= 1

    async def _items(self, process: EngineProcess, incoming: EngineCall) -> AsyncIterator[Token | Done]:
        async for message in incoming:
            if "t" in message:
                # One piece of text may stand for several tokens: the text goes with the last of them.
                self._generated += len(message["i"])
                told = list(zip(message["i"], message["l"], strict=True))
                for number, logprob in told[:-1]:
                    yield Token("", number, logprob)
                for number, logprob in told[-1:]:
                    yield Token(message["t"], number, logprob)
                continue
            process.done(message["id"])
            if "error" in message:
                raise _error_of(message)
            yield Done(
                finish=message["done"],
                prompt_tokens=message["prompt"],
                completion_tokens=message["completion"],
                model=self._chat.id,
                model_sha256=self._chat.sha256,
                template_sha256=process.hello["template_sha256"],
            )
            return

    async def _ask(self, deadline: float, **message: Any) -> dict[str, Any]:
        process = self._running()
        with trio.move_on_after(deadline):
            async with process.call(**message) as incoming:
                async for answer in incoming:
                    process.done(answer["id"])
                    if "error" in answer:
                        raise _error_of(answer)
                    return answer
        raise EngineError(f"the engine did not answer within {deadline:.0f} s")

    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings:
        card = self._embedding
        if card is None or model not in ("", card.id):
            raise InvalidRequest(f"this worker does not serve the embedding model {model!r}")
        if not texts:
            raise InvalidRequest("there is nothing to embed")
        answer = await self._ask(_EMBED_DEADLINE, op="embed", texts=list(texts))
        return Embeddings(
            vectors=tuple(struct.unpack(f"<{len(raw) // 4}f", raw) for raw in answer["vectors"]),
            prompt_tokens=answer["tokens"],
            model=card.id,
            model_sha256=card.sha256,
        )

    async def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        answer = await self._ask(_COUNT_DEADLINE, op="count", messages=self._messages(messages))
        return int(answer["count"])

    def statistics(self) -> EngineStatistics:
        process = self._process
        resident = 0.0
        if process is not None and process.pid is not None:
            try:
                resident = psutil.Process(process.pid).memory_info().rss / 2**20
            except psutil.Error:
                resident = 0.0
        return EngineStatistics(
            ready=process is not None,
            slots=self._settings.slots,
            busy=min(self._busy, self._settings.slots),
            pid=process.pid if process is not None else None,
            restarts=self._restarts,
            resident_mib=resident,
            generated_tokens=self._generated,
        )


def _error_of(message: dict[str, Any]) -> Exception:
    kinds: dict[str, type[Exception]] = {"too_long": PromptTooLong, "invalid": InvalidRequest}
    return kinds.get(message["error"], EngineError)(message["message"])
