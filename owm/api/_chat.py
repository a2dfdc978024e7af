"""The OpenAI dialect: chat completions, models, embeddings, for clients that people have already."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator

import msgspec
from quart import Blueprint, Response, request
from quart_trio.wrappers import TrioResponse

from owm.api._backend import Answered, AnswerEvent, Restarted, Started, TokenText
from owm.api._chat_bodies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatCompletionRequest,
    ChatReply,
    ChoiceLogprobs,
    ChunkChoice,
    ChunkDelta,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingRow,
    ModelEntry,
    ModelList,
    TokenLogprob,
    Usage,
)
from owm.api._gateway import Gateway, version_of
from owm.api._problems import openai_error
from owm.api._requests import read_body
from owm.api._streams import Sink, StreamedResponse
from owm.api._undone import refuse_undone
from owm.api._usage import Charge
from owm.api.errors import ApiError, NotFound, WorkFailed
from owm.model import ChatMessage, GenerateRequest

__all__ = ["chat_routes"]

_DEFAULT_TOKENS = 256
_IMPOSSIBLE = -9999.0  #: what OpenAI writes for a token that is as good as impossible


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
        refuse_undone(body)
        gateway.work.check()
        gateway.check_budget(messages, "messages")
        _check_model(gateway, body.model, "chat")
        charge = gateway.usage.charge(caller)
        stop = body.stop if body.stop is not None else ()
        asked = body.max_completion_tokens or body.max_tokens or _DEFAULT_TOKENS
        ask = GenerateRequest(
            messages=messages,
            model=body.model,
            max_tokens=gateway.limit_tokens(body.model, asked),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=gateway.seed(body.seed),
            stop=(stop,) if isinstance(stop, str) else stop,
        )
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        completion = _Completion(gateway, charge, ask, usage=usage, logprobs=bool(body.logprobs))
        if body.stream:
            return StreamedResponse(completion.stream, _error_chunk, request.path)
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
        refuse_undone(body)
        gateway.work.check()
        texts = (body.input,) if isinstance(body.input, str) else body.input
        for text in texts:
            gateway.check_budget([ChatMessage("user", text)], "input")
        _check_model(gateway, body.model, "embedding")
        with gateway.doing(gateway.usage.charge(caller)):
            found = await gateway.backend.embed(texts, body.model)
        rows = tuple(
            EmbeddingRow(index=index, embedding=_encoded(vector, body.encoding_format))
            for index, vector in enumerate(found.vectors)
        )
        usage = Usage(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens)
        gateway.answered += 1
        gateway.metrics.answered(found.prompt_tokens, 0)
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
    """One completion on its way.

    Args:
        usage: a stream's last chunk holds the token counts.
        logprobs: the tokens' log-probabilities were asked for.
    """

    def __init__(self, gateway: Gateway, charge: Charge, ask: GenerateRequest, *, usage: bool, logprobs: bool) -> None:
        self._gateway = gateway
        self._charge = charge
        self._ask = ask
        self._with_usage = usage
        self._with_logprobs = logprobs
        self._id = gateway.new_id("chatcmpl-")
        self._began = gateway.clock.monotonic()
        self._created = int(gateway.clock.time())
        self._model = ask.model or getattr(gateway.model("chat"), "id", "")
        self._first_token: float | None = None
        self._tokens: list[TokenLogprob] = []  #: whose log-probabilities were not sent yet

    async def collect(self) -> tuple[ChatCompletion, str]:
        """The whole answer and its model's SHA-256; a worker that dies is replaced without a word."""
        gateway = self._gateway
        pieces: list[str] = []
        with gateway.doing(self._charge):
            async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                async for event in events:
                    if isinstance(event, TokenText):
                        self._note(event)
                        pieces.append(event.text)
                    elif isinstance(event, Restarted):
                        pieces.clear()
                        self._tokens.clear()
                        self._first_token = None
                    elif isinstance(event, Answered):
                        gateway.note_answer(event, self._first_token)
                        return self._whole("".join(pieces), event), event.model_sha256
            raise WorkFailed("the answer ended before it was complete; ask again")

    def _whole(self, text: str, done: Answered) -> ChatCompletion:
        choice = ChatChoice(
            index=0, message=ChatReply("assistant", text), finish_reason=done.finish, logprobs=self._logprobs()
        )
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=done.model,
            choices=(choice,),
            usage=_usage(done),
            system_fingerprint=version_of(done.model_sha256),
        )

    async def stream(self, sink: Sink) -> None:
        """OpenAI's stream. It knows no restart: one whose worker dies after the first piece gets an error and ends."""
        gateway = self._gateway
        with gateway.doing(self._charge, sink):
            async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                await self._forward(events, sink)

    async def _forward(self, events: AsyncIterator[AnswerEvent], sink: Sink) -> None:
        async for event in events:
            if isinstance(event, Started) and event.model_sha256:
                sink.set_header("X-OWM-Model-Version", version_of(event.model_sha256))
            elif isinstance(event, TokenText):
                self._note(event)
                if not event.text:
                    continue
                if not sink.started:
                    await sink.write(self._chunk(ChunkDelta(role="assistant", content="")))
                await sink.write(self._chunk(ChunkDelta(content=event.text), logprobs=self._logprobs()))
            elif isinstance(event, Restarted):
                if sink.started:
                    raise WorkFailed(f"the worker was lost and the stream cannot be taken back: {event.reason}")
                self._tokens.clear()
            elif isinstance(event, Answered):
                self._gateway.note_answer(event, self._first_token)
                await sink.write(self._chunk(ChunkDelta(), finish=event.finish, logprobs=self._logprobs()))
                if self._with_usage:
                    await sink.write(self._chunk(None, usage=_usage(event)))
                await sink.write(b"data: [DONE]\n\n")
                return
        raise WorkFailed("the answer ended before it was complete; ask again")

    def _note(self, token: TokenText) -> None:
        if token.text and self._first_token is None:
            self._first_token = self._gateway.clock.monotonic() - self._began
        if self._with_logprobs and token.logprob is not None:
            raw = tuple(token.text.encode("utf-8", "replace")) if token.text else None
            logprob = max(_IMPOSSIBLE, token.logprob)
            self._tokens.append(TokenLogprob(token=token.text, logprob=logprob, bytes=raw))

    def _logprobs(self) -> ChoiceLogprobs | None:
        """Those of the tokens that came since it was last asked for; None where there are none to tell."""
        if not self._tokens:
            return None
        tokens, self._tokens = tuple(self._tokens), []
        return ChoiceLogprobs(content=tokens)

    def _chunk(
        self,
        delta: ChunkDelta | None,
        *,
        finish: str | None = None,
        usage: Usage | None = None,
        logprobs: ChoiceLogprobs | None = None,
    ) -> bytes:
        choice = None if delta is None else ChunkChoice(index=0, delta=delta, finish_reason=finish, logprobs=logprobs)
        chunk = ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=() if choice is None else (choice,),
            usage=usage if self._with_usage else msgspec.UNSET,
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


def _json(body: msgspec.Struct, version: str | None = None) -> Response:
    response = TrioResponse(msgspec.json.encode(body), content_type="application/json")
    if version is not None:
        response.headers["X-OWM-Model-Version"] = version
    return response
