"""Any OpenAI-compatible server behind a worker: vLLM, SGLang, Ollama, llama.cpp's own.

This is how an operator with many GPUs joins. What such a server computes cannot be checked by teacher forcing under a
known file, so the worker's manifest marks it as unaudited.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import httpx
import structlog
import trio

from owm.config import ModelSettings
from owm.errors import ConfigError
from owm.identity import PeerId
from owm.model._core_dialect import EventData, parse_chunk, parse_models, parse_vectors
from owm.model._interface import (
    ChatMessage,
    Done,
    Embeddings,
    Engine,
    EngineStatistics,
    GenerateRequest,
    Token,
)
from owm.model.errors import EngineCrashed, EngineError, InvalidRequest, PromptTooLong
from owm.records import ServedModel

__all__ = ["OpenAIEngine"]

_log = structlog.get_logger(__name__)

_TIMEOUT: Final = httpx.Timeout(120.0, connect=5.0)
_PROBE_SECONDS: Final = 10.0  #: for the server to list its models
_PROBE_EVERY: Final = 30.0  #: while all is well, so that a server that died is noticed before a task fails with it
_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 30.0
_MOST_ERROR: Final = 1 << 16  #: bytes of an error's body
_MOST_MODELS: Final = 4 << 20
_MOST_VECTORS: Final = 64 << 20
_SLACK: Final = 8  #: pieces beyond the tokens that were asked for


class OpenAIEngine(Engine):
    """Passes work on to ``[model] url``.

    The server says nothing of its weights, so the "hash" that the manifest shows for a model is made of the worker's
    peer id, the URL, the model's kind and its name: it tells two workers apart, and proves nothing.

    After a failure the engine is not ready until the server lists its models again; it is asked with back-off.

    Args:
        owner: whose worker it is.
    """

    kind = "openai"

    def __init__(self, settings: ModelSettings, owner: PeerId | None = None) -> None:
        if not settings.url:
            raise ConfigError('model.engine = "openai" needs model.url, such as "http://127.0.0.1:8000/v1"')
        key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        if settings.api_key_env and not key:
            raise ConfigError(f"model.api_key_env names {settings.api_key_env}, which is not set")
        self._settings = settings
        self._base = settings.url.rstrip("/")
        # A compressed stream could grow without bound before we see its size.
        self._headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._client: httpx.AsyncClient | None = None
        self._busy = 0
        self._generated = 0
        self._chat = self._served(settings.chat, "chat", owner)
        self._embedding = self._served(settings.embedding, "embedding", owner) if settings.embedding else None
        self._ready = False
        self._failed = trio.Event()
        self._changed = trio.Event()

    def _served(self, name: str, kind: str, owner: PeerId | None) -> ServedModel:
        parts = ("openai", str(owner or ""), self._base, kind, name)
        return ServedModel(name, hashlib.sha256(json.dumps(parts).encode()).hexdigest(), kind, self._settings.context)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (self._chat,) if self._embedding is None else (self._chat, self._embedding)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Check that the server answers and knows the model, then serve.

        Raises:
            ConfigError: it refuses the key, or does not know the model; the message lists those that it knows.
            EngineError: it does not answer.
        """
        try:
            client = httpx.AsyncClient(base_url=self._base, headers=self._headers, timeout=_TIMEOUT, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigError(f"model.url: {self._base!r} is no URL: {error}") from error
        async with client:
            self._client = client
            try:
                await self._probe()
                self._set_ready(True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    yield self
                    nursery.cancel_scope.cancel()
            finally:
                self._client = None
                self._set_ready(False)

    async def _probe(self) -> None:
        """Ask the server for its models; raises ConfigError or EngineError, as :meth:`running` does."""
        base = self._base
        try:
            with trio.fail_after(_PROBE_SECONDS):
                async with self._open().stream("GET", "/models") as response:
                    if response.status_code in (401, 403):
                        raise ConfigError(f"{base} refuses the key ({response.status_code}): check model.api_key_env")
                    response.raise_for_status()
                    known = parse_models(await _read(response, _MOST_MODELS))
        except (httpx.HTTPError, EngineError, trio.TooSlowError) as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"model.url: no OpenAI-compatible server answers at {base}: {reason}") from error
        for model in self.models:
            if model.id not in known:
                names = ", ".join(known[:50])
                hint = '; set it to "" for none' if model.kind == "embedding" else ""
                raise ConfigError(f"model.{model.kind}: {base} does not serve {model.id!r}, but {names}{hint}")

    async def _watch(self) -> None:
        """Ask now and then, at once after a failure, and with back-off until the server answers again."""
        while True:
            with trio.move_on_after(_PROBE_EVERY):
                await self._failed.wait()
            self._failed = trio.Event()
            backoff = _FIRST_BACKOFF
            while True:
                try:
                    await self._probe()
                except (EngineError, ConfigError) as error:
                    self._set_ready(False)
                    _log.warning("the server behind this worker is away", reason=str(error), wait_seconds=backoff)
                    await trio.sleep(backoff)
                    backoff = min(backoff * 2, _LONGEST_BACKOFF)
                else:
                    if not self._ready:
                        _log.info("the server behind this worker answers")
                    self._set_ready(True)
                    break

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._changed.set()
            self._changed = trio.Event()

    def _fail(self) -> None:
        """No more work until the server has shown that it lives."""
        _log.info("the server behind this worker failed")
        self._set_ready(False)
        self._failed.set()

    async def readiness_changed(self) -> None:
        await self._changed.wait()

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineCrashed("the engine is not running")
        return self._client

    @asynccontextmanager
    async def _asked(self, path: str, body: dict[str, object]) -> AsyncIterator[httpx.Response]:
        """The response to one request, its status checked. Leaving closes it, which tells such servers to stop."""
        client = self._open()
        if not self._ready:
            raise EngineCrashed("the server behind this worker does not answer; it is asked again")
        self._busy += 1
        try:
            async with client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await _read(response, _MOST_ERROR))
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise EngineError("the server behind this worker sent a compressed answer, which was not asked for")
                yield response
        except httpx.HTTPError as error:
            self._fail()
            reason = str(error) or type(error).__name__
            raise EngineCrashed(f"the server behind this worker failed: {reason}") from error
        except EngineError:
            self._fail()
            raise
        finally:
            self._busy -= 1

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Token | Done]]:
        if request.model not in ("", self._chat.id):
            raise InvalidRequest(f"this worker does not serve the model {request.model!r}")
        body = {
            "model": self._chat.id,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        async with self._asked("/chat/completions", body) as response:
            yield self._items(response, request.max_tokens)

    async def _items(self, response: httpx.Response, most: int) -> AsyncIterator[Token | Done]:
        """What is raised here passes through the block of :meth:`_asked`."""
        events, count, size = EventData(), 0, 0
        finish, prompt, completion = "stop", 0, None
        async for data in response.aiter_raw():
            for event in events.feed(data):
                if event == b"[DONE]":
                    # A character of several tokens is one piece: the others have to be told before they are counted.
                    for _ in range(min(completion or 0, size, most) - count):
                        yield Token("", -1, math.nan)
                    yield Done(
                        finish=finish,
                        prompt_tokens=prompt,
                        completion_tokens=count if completion is None else completion,
                        model=self._chat.id,
                        model_sha256=self._chat.sha256,
                    )
                    return
                chunk = parse_chunk(event)
                finish = chunk.finish or finish
                prompt = prompt if chunk.prompt_tokens is None else chunk.prompt_tokens
                completion = completion if chunk.completion_tokens is None else chunk.completion_tokens
                for text in chunk.texts:
                    count += 1
                    self._generated += 1
                    if count > most + _SLACK:
                        raise EngineError("the server behind this worker sent more than was asked for")
                    size += len(text.encode())
                    yield Token(text, -1, math.nan)
        raise EngineCrashed("the server behind this worker ended its answer early")

    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings:
        served = self._embedding
        if served is None or model not in ("", served.id):
            raise InvalidRequest(f"this worker does not serve the embedding model {model!r}")
        async with self._asked("/embeddings", {"model": served.id, "input": list(texts)}) as response:
            body = await _read(response, _MOST_VECTORS)
            vectors, tokens = await trio.to_thread.run_sync(parse_vectors, body, len(texts))  # may take a while
        return Embeddings(vectors=vectors, prompt_tokens=tokens, model=served.id, model_sha256=served.sha256)

    async def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """An upper estimate: such servers have no common way to ask, and a token has at least one byte in three."""
        return sum(len(message.content.encode()) // 3 + 4 for message in messages)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            ready=self._ready,
            slots=self._settings.slots,
            busy=min(self._busy, self._settings.slots),
            generated_tokens=self._generated,
        )


async def _read(response: httpx.Response, most: int) -> bytes:
    """The whole body; raises EngineError as soon as it is larger."""
    found = bytearray()
    async for data in response.aiter_raw():
        found += data
        if len(found) > most:
            raise EngineError(f"the server behind this worker sent more than {most >> 10} KiB at once")
    return bytes(found)


def _refusal(status: int, body: bytes) -> Exception:
    text = body[:500].decode(errors="replace")
    if status == 400 and ("context" in text or "too long" in text):
        return PromptTooLong(f"the prompt is too long for the server behind this worker: {text}")
    if 400 <= status < 500 and status not in (401, 403, 408, 429):
        return InvalidRequest(f"the server behind this worker refused: {text}")
    return EngineError(f"the server behind this worker answered {status}: {text}")
