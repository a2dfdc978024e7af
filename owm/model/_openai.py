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
from typing import Any, Final, Self

import httpx

from owm.config import ModelSettings
from owm.errors import ConfigError
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

_TIMEOUT: Final = httpx.Timeout(120.0, connect=5.0)
_MOST_LINE: Final = 1 << 20


class OpenAIEngine(Engine):
    """Passes work on to ``[model] url``.

    The server says nothing of its weights, so the "hash" that the manifest shows for its model is the hash of the URL
    and the name: it tells two servers apart and proves nothing.
    """

    kind = "openai"

    def __init__(self, settings: ModelSettings) -> None:
        if not settings.url:
            raise ConfigError('model.engine = "openai" needs model.url, such as "http://127.0.0.1:8000/v1"')
        key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        if settings.api_key_env and not key:
            raise ConfigError(f"model.api_key_env names {settings.api_key_env}, which is not set")
        self._settings = settings
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client: httpx.AsyncClient | None = None
        self._busy = 0
        self._generated = 0
        self._sha256 = hashlib.sha256(f"openai:{settings.url}:{settings.chat}".encode()).hexdigest()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        chat = ServedModel(self._settings.chat, self._sha256, "chat", self._settings.context)
        if not self._settings.embedding:
            return (chat,)
        return (chat, ServedModel(self._settings.embedding, self._sha256, "embedding", self._settings.context))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Check that the server answers and knows the model, then serve.

        Raises:
            ConfigError: it refuses the key, or does not know the model; the message lists those that it knows.
            EngineError: it does not answer.
        """
        base = self._settings.url.rstrip("/")
        async with httpx.AsyncClient(base_url=base, headers=self._headers, timeout=_TIMEOUT, trust_env=False) as client:
            try:
                response = await client.get("/models")
                if response.status_code in (401, 403):
                    raise ConfigError(f"{base} refuses the key ({response.status_code}): check model.api_key_env")
                response.raise_for_status()
                known = [str(entry["id"]) for entry in response.json()["data"]]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise EngineError(f"model.url: no OpenAI-compatible server answers at {base}: {error}") from error
            if self._settings.chat not in known:
                raise ConfigError(f"model.chat: {base} does not serve {self._settings.chat!r}, but {', '.join(known)}")
            self._client = client
            try:
                yield self
            finally:
                self._client = None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineCrashed("the engine is not running")
        return self._client

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Token | Done]]:
        if request.model not in ("", self._settings.chat):
            raise InvalidRequest(f"this worker does not serve the model {request.model!r}")
        body = {
            "model": self._settings.chat,
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
        self._busy += 1
        try:
            # Leaving the block closes the response, which is how such servers are told to stop.
            async with self._open().stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                yield self._items(response, request.max_tokens)
        except httpx.HTTPError as error:
            raise EngineCrashed(f"the server behind this worker failed: {error}") from error
        finally:
            self._busy -= 1

    async def _items(self, response: httpx.Response, most: int) -> AsyncIterator[Token | Done]:
        finish, count, size = "stop", 0, 0
        usage: dict[str, Any] = {}
        try:
            async for line in response.aiter_lines():
                if len(line) > _MOST_LINE:
                    raise EngineError("the server behind this worker sent a line without end")
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    break
                chunk = _chunk(data)
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or ():
                    text = (choice.get("delta") or {}).get("content")
                    if text:
                        count += 1
                        self._generated += 1
                        size += len(str(text).encode())
                        yield Token(str(text), -1, math.nan)
                    if choice.get("finish_reason"):
                        finish = "length" if choice["finish_reason"] == "length" else "stop"
            else:
                raise EngineCrashed("the server behind this worker ended its answer early")
        except httpx.HTTPError as error:
            raise EngineCrashed(f"the server behind this worker failed: {error}") from error
        # Such servers send several tokens at once where a character takes several, and count some that have no text.
        completion = int(usage.get("completion_tokens") or count)
        for _ in range(min(completion, size, most) - count):
            yield Token("", -1, math.nan)
        yield Done(
            finish=finish,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=completion,
            model=self._settings.chat,
            model_sha256=self._sha256,
        )

    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings:
        name = self._settings.embedding
        if not name or model not in ("", name):
            raise InvalidRequest(f"this worker does not serve the embedding model {model!r}")
        try:
            response = await self._open().post("/embeddings", json={"model": name, "input": list(texts)})
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content)
            found = response.json()
            rows = sorted(found["data"], key=lambda row: row["index"])
            vectors = tuple(tuple(float(value) for value in row["embedding"]) for row in rows)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the server behind this worker failed: {error}") from error
        if len(vectors) != len(texts):
            raise EngineError("the server behind this worker sent another number of vectors than texts")
        tokens = int((found.get("usage") or {}).get("prompt_tokens", 0))
        return Embeddings(vectors=vectors, prompt_tokens=tokens, model=name, model_sha256=self._sha256)

    async def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """An upper estimate: such servers have no common way to ask, and a token has at least one byte in three."""
        return sum(len(message.content.encode()) // 3 + 4 for message in messages)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            ready=self._client is not None,
            slots=self._settings.slots,
            busy=min(self._busy, self._settings.slots),
            generated_tokens=self._generated,
        )


def _chunk(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise EngineError("the server behind this worker sent what is not JSON") from error
    if not isinstance(found, dict):
        raise EngineError("the server behind this worker sent what is not an object")
    if "error" in found:
        raise EngineError(f"the server behind this worker failed: {str(found['error'])[:300]}")
    return found


def _refusal(status: int, body: bytes) -> Exception:
    text = body[:500].decode(errors="replace")
    if status == 400 and ("context" in text or "too long" in text):
        return PromptTooLong(f"the prompt is too long for the server behind this worker: {text}")
    if 400 <= status < 500 and status not in (401, 403, 408, 429):
        return InvalidRequest(f"the server behind this worker refused: {text}")
    return EngineError(f"the server behind this worker answered {status}: {text}")
