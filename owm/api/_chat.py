"""The OpenAI dialect: chat completions, models, embeddings, for clients that people have already."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator

import msgspec
import trio
from quart import Blueprint, Response, request
from quart_trio.wrappers import TrioResponse

from owm.api._backend import Answered, AnswerEvent, Restarted, TokenText
from owm.api._chat_bodies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatCompletionRequest,
    ChatReply,
    ChunkChoice,
    ChunkDelta,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingRow,
    ModelEntry,
    ModelList,
    Usage,
)
from owm.api._gateway import Gateway, version_of
from owm.api._problems import openai_error
from owm.api._requests import read_body
from owm.api._streams import Sink, StreamedResponse
from owm.api.errors import ApiError, NotFound, TimedOut, WorkFailed
from owm.model import ChatMessage, GenerateRequest

__all__ = ["chat_routes"]

_DEFAULT_TOKENS = 256


def chat_routes(gateway: Gateway) -> Blueprint:
    """Routes of OpenAI's API that make sense here."""
    routes = Blueprint("chat", __name__)

    @routes.post("/v1/chat/completions")
    async def complete() -> Response:
        caller = await gateway.identify(request)
        body = await read_body(request, ChatCompletionRequest)
        messages = tuple(
            ChatMessage("system" if turn.role == "developer" else turn.role, turn.text) for turn in body.messages
        )
        gateway.check_budget(messages, "messages")
        _check_model(gateway, body.model, "chat")
        gateway.charge(caller)
        stop = body.stop if body.stop is not None else ()
        asked = body.max_completion_tokens or body.max_tokens or _DEFAULT_TOKENS
        ask = GenerateRequest(
            messages=messages,
            model=body.model,
            max_tokens=gateway.limit_tokens(body.model, asked),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed or 0,
            stop=(stop,) if isinstance(stop, str) else stop,
        )
        completion = _Completion(gateway, ask)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamedResponse(lambda sink: completion.stream(sink, usage=usage), _error_chunk, request.path)
        answer, sha256 = await completion.collect()
        return _json(answer, version_of(sha256))

    @routes.get("/v1/models")
    async def models() -> Response:
        listed = tuple(ModelEntry(id=m.id, created=0, owned_by="owm-network") for m in gateway.backend.models())
        return _json(ModelList(data=listed))

    @routes.get("/v1/models/<model_id>")
    async def model(model_id: str) -> Response:
        _check_model(gateway, model_id, "")
        return _json(ModelEntry(id=model_id, created=0, owned_by="owm-network"))

    @routes.post("/v1/embeddings")
    async def embed() -> Response:
        caller = await gateway.identify(request)
        body = await read_body(request, EmbeddingRequest)
        texts = (body.input,) if isinstance(body.input, str) else body.input
        for text in texts:
            gateway.check_budget([ChatMessage("user", text)], "input")
        _check_model(gateway, body.model, "embedding")
        gateway.charge(caller)
        try:
            with gateway.slot(), trio.fail_after(gateway.settings.query_timeout):
                found = await gateway.backend.embed(texts, body.model)
        except trio.TooSlowError:
            raise TimedOut("the embeddings were not ready in time; send fewer texts at once") from None
        rows = tuple(
            EmbeddingRow(index=index, embedding=_encoded(vector, body.encoding_format))
            for index, vector in enumerate(found.vectors)
        )
        usage = Usage(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens)
        gateway.answered += 1
        return _json(EmbeddingList(data=rows, model=found.model, usage=usage), version_of(found.model_sha256))

    return routes


def _check_model(gateway: Gateway, model: str, kind: str) -> None:
    """Raises NotFound for a model that nobody serves, as OpenAI does. With no worker at all, the work says so."""
    served = [m.id for m in gateway.backend.models() if kind in ("", m.kind)]
    if model and served and model not in served:
        raise NotFound(f"the model {model!r} is not served; GET /v1/models lists those that are", field="model")
    if model and not served and not kind:
        raise NotFound(f"the model {model!r} is not served", field="model")


def _encoded(vector: tuple[float, ...], encoding: str | None) -> object:
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


class _Completion:
    """One completion on its way."""

    def __init__(self, gateway: Gateway, ask: GenerateRequest) -> None:
        self._gateway = gateway
        self._ask = ask
        self._id = gateway.new_id("chatcmpl-")
        self._created = int(gateway.clock.time())
        self._model = ask.model or getattr(gateway.model("chat"), "id", "")

    async def collect(self) -> tuple[ChatCompletion, str]:
        """The whole answer and its model's SHA-256; a worker that dies is replaced without a word."""
        gateway = self._gateway
        pieces: list[str] = []
        try:
            with gateway.slot(), trio.fail_after(gateway.settings.query_timeout):
                async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                    async for event in events:
                        if isinstance(event, TokenText):
                            pieces.append(event.text)
                        elif isinstance(event, Restarted):
                            pieces.clear()
                        elif isinstance(event, Answered):
                            gateway.answered += 1
                            return self._whole("".join(pieces), event), event.model_sha256
        except trio.TooSlowError:
            raise _too_slow(gateway) from None
        raise WorkFailed("the answer ended before it was complete; ask again")

    def _whole(self, text: str, done: Answered) -> ChatCompletion:
        choice = ChatChoice(index=0, message=ChatReply("assistant", text), finish_reason=done.finish)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=done.model,
            choices=(choice,),
            usage=_usage(done),
            system_fingerprint=version_of(done.model_sha256),
        )

    async def stream(self, sink: Sink, *, usage: bool) -> None:
        """OpenAI's stream. It knows no restart: one whose worker dies after the first piece gets an error and ends."""
        gateway = self._gateway
        try:
            with gateway.slot(), trio.fail_after(gateway.settings.query_timeout):
                async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                    await self._forward(events, sink, usage)
        except trio.TooSlowError:
            raise _too_slow(gateway) from None

    async def _forward(self, events: AsyncIterator[AnswerEvent], sink: Sink, usage: bool) -> None:
        async for event in events:
            if isinstance(event, TokenText) and event.text:
                if not sink.started:
                    await sink.write(self._chunk(ChunkDelta(role="assistant", content="")))
                await sink.write(self._chunk(ChunkDelta(content=event.text)))
            elif isinstance(event, Restarted) and sink.started:
                raise WorkFailed(f"the worker was lost and the stream cannot be taken back: {event.reason}")
            elif isinstance(event, Answered):
                self._gateway.answered += 1
                await sink.write(self._chunk(ChunkDelta(), finish=event.finish))
                if usage:
                    await sink.write(self._chunk(None, usage=_usage(event)))
                await sink.write(b"data: [DONE]\n\n")
                return
        raise WorkFailed("the answer ended before it was complete; ask again")

    def _chunk(self, delta: ChunkDelta | None, *, finish: str | None = None, usage: Usage | None = None) -> bytes:
        choices = () if delta is None else (ChunkChoice(index=0, delta=delta, finish_reason=finish),)
        chunk = ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage if usage is not None else msgspec.UNSET,
        )
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _error_chunk(error: ApiError) -> bytes:
    return b"data: " + msgspec.json.encode(openai_error(error)) + b"\n\n"


def _usage(done: Answered) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        total_tokens=done.prompt_tokens + done.completion_tokens,
    )


def _too_slow(gateway: Gateway) -> TimedOut:
    return TimedOut(
        f"the answer was not complete after {gateway.settings.query_timeout:g} s; ask again, or for fewer tokens"
    )


def _json(body: msgspec.Struct, version: str | None = None) -> Response:
    response = TrioResponse(msgspec.json.encode(body), content_type="application/json")
    if version is not None:
        response.headers["X-OWM-Model-Version"] = version
    return response
