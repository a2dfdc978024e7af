"""The query API (SRS 4.8.2): ask, ask and watch, fetch an answer again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from quart import Blueprint, Response, request
from quart_trio.wrappers import TrioResponse

from owm.api._backend import Answered, AnswerEvent, Restarted, Started, TokenText
from owm.api._bodies import QueryRequest, QueryResponse, Restart, TokenPiece
from owm.api._gateway import Gateway, version_of
from owm.api._problems import problem
from owm.api._requests import read_body
from owm.api._streams import Sink, StreamedResponse
from owm.api._usage import Charge
from owm.api.errors import ApiError, WorkFailed
from owm.model import ChatMessage, GenerateRequest

__all__ = ["query_routes", "sse"]


def query_routes(gateway: Gateway) -> Blueprint:
    """Routes under /v1/query."""
    routes = Blueprint("query", __name__)

    async def accept(*, stream: bool) -> Response:
        caller = await gateway.identify(request)
        body = await read_body(request, QueryRequest)
        turns = tuple(ChatMessage(turn.role, turn.content) for turn in body.context.messages)
        messages = (*turns, ChatMessage("user", body.query))
        gateway.work.check()
        gateway.check_budget(messages, "$.query")
        charge = gateway.usage.charge(caller)
        limit = gateway.limit_tokens("", body.max_tokens)
        ask = GenerateRequest(messages=messages, max_tokens=limit, seed=gateway.seed(None))
        query = _Query(gateway, charge, ask)
        if stream or body.stream:
            return StreamedResponse(query.stream, _error_event, request.path)
        response = await query.collect()
        return _json(response, version=response.model_version)

    @routes.post("/v1/query")
    async def ask() -> Response:
        return await accept(stream=False)

    @routes.post("/v1/query/stream")
    async def ask_and_watch() -> Response:
        return await accept(stream=True)

    @routes.get("/v1/query/<query_id>")
    async def fetch(query_id: str) -> Response:
        caller = await gateway.identify(request)
        response = gateway.results(caller).get(caller.id, query_id, gateway.clock.monotonic())
        return _json(response, version=response.model_version)

    return routes


class _Query:
    """One question on its way; holds nothing outside of :meth:`collect` and :meth:`stream`."""

    def __init__(self, gateway: Gateway, charge: Charge, ask: GenerateRequest) -> None:
        self._gateway = gateway
        self._charge = charge
        self._ask = ask
        self._id = gateway.new_id("qry_")
        self._began = gateway.clock.monotonic()
        self._pieces: list[str] = []
        self._first_token: float | None = None

    async def collect(self) -> QueryResponse:
        """The whole answer; a worker that dies is replaced without a word."""
        gateway = self._gateway
        with gateway.doing(self._charge):
            async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        return self._finish(event)
                    self._note(event)
            raise WorkFailed("the answer ended before it was complete; ask again")

    async def stream(self, sink: Sink) -> None:
        """The answer as server-sent events: `token`, `restart`, and one `done` or `error` at the end."""
        sink.set_header("X-OWM-Query-Id", self._id)
        gateway = self._gateway
        with gateway.doing(self._charge, sink):
            async with gateway.backend.answer(self._ask, timeout=gateway.settings.query_timeout) as events:
                await self._forward(events, sink)

    async def _forward(self, events: AsyncIterator[AnswerEvent], sink: Sink) -> None:
        async for event in events:
            if isinstance(event, Answered):
                await sink.write(sse("done", self._finish(event)))
                return
            self._note(event)
            if isinstance(event, Started) and event.model_sha256:
                sink.set_header("X-OWM-Model-Version", version_of(event.model_sha256))
            elif isinstance(event, TokenText) and event.text:
                await sink.write(sse("token", TokenPiece(event.text)))
            elif isinstance(event, Restarted) and sink.started:
                await sink.write(sse("restart", Restart(event.reason)))
        raise WorkFailed("the answer ended before it was complete; ask again")

    def _note(self, event: AnswerEvent) -> None:
        if isinstance(event, TokenText) and event.text:
            if self._first_token is None:
                self._first_token = self._gateway.clock.monotonic()
            self._pieces.append(event.text)
        elif isinstance(event, Restarted):
            self._pieces.clear()
            self._first_token = None

    def _finish(self, done: Answered) -> QueryResponse:
        gateway = self._gateway
        now = gateway.clock.monotonic()
        first = self._first_token
        response = QueryResponse(
            query_id=self._id,
            answer="".join(self._pieces),
            sub_models_used=(done.model,),
            data_sources=(),
            confidence=None,
            model_version=version_of(done.model_sha256),
            ots_verified=False,
            latency_ms=round((now - self._began) * 1000),
            cost_sats=0,
            worker=gateway.pseudonym(done.worker),
            receipt_id=done.receipt_id,
            attempts=done.attempts,
            time_to_first_token_ms=None if first is None else round((first - self._began) * 1000),
        )
        caller = self._charge.caller
        gateway.results(caller).put(caller.id, response, now)
        gateway.note_answer(done, None if first is None else first - self._began)
        return response


def sse(event: str, data: msgspec.Struct) -> bytes:
    """One server-sent event; JSON holds no line breaks, so one data line is enough."""
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _error_event(error: ApiError) -> bytes:
    return sse("error", problem(error))


def _json(body: msgspec.Struct, version: str) -> Response:
    response = TrioResponse(msgspec.json.encode(body), content_type="application/json")
    response.headers["X-OWM-Model-Version"] = version
    return response
