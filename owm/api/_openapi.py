"""The OpenAPI document, written from the structs that validate the bodies, so that it cannot drift from them."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from quart import Blueprint, Response
from quart_trio.wrappers import TrioResponse

from owm import __version__
from owm.api._bodies import Health, Nodes, Problem, QueryRequest, QueryResponse, Restart, Statistics, TokenPiece
from owm.api._chat_bodies import (
    ChatChunk,
    ChatCompletion,
    ChatCompletionRequest,
    EmbeddingList,
    EmbeddingRequest,
    ModelEntry,
    ModelList,
)
from owm.api._gateway import Gateway

__all__ = ["document", "openapi_routes"]

_REF: Final = "#/components/schemas/{name}"
_BODIES: Final = (
    QueryRequest,
    QueryResponse,
    TokenPiece,
    Restart,
    Problem,
    Nodes,
    Statistics,
    Health,
    ChatCompletionRequest,
    ChatCompletion,
    ChatChunk,
    ModelList,
    ModelEntry,
    EmbeddingRequest,
    EmbeddingList,
)
_HEADERS: Final = {
    "X-OWM-Model-Version": {
        "description": "First 12 hex digits of the SHA-256 of the model that answered, or of the default one.",
        "schema": {"type": "string"},
    },
    "X-OWM-OTS-Verified": {
        "description": "Whether the model's timestamp was verified.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
}
_ALLOWANCE: Final = {
    "X-RateLimit-Limit": {
        "description": "Requests that the caller may make within 24 hours; absent where there is no limit.",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Remaining": {
        "description": "How many of them are left now.",
        "schema": {"type": "integer"},
    },
}
_DETAILS: Final = {
    400: "This is no HTTP request, its body is not JSON, or the worker refused it.",
    401: "An API key is needed.",
    403: "A foreign page rode on the landing page's session.",
    404: "There is no such thing, or it belongs to somebody else.",
    408: "The body did not arrive in time.",
    413: "The body or the prompt is too large; no work was done.",
    415: "The body is not declared as JSON.",
    421: "The Host header names none of this gateway's names.",
    422: "A field is wrong; the problem names it.",
    429: "The sliding window of this key or address is full; see Retry-After.",
    431: "The request's head is too long.",
    500: "The gateway failed.",
    502: "The worker failed, and no other could take over.",
    503: "No worker is available, or the gateway is busy or stopping; see Retry-After.",
    504: "The answer was not complete in time.",
}


#: A request that works, by the name of its body; shown in the document.
_EXAMPLES: Final[dict[str, Any]] = {
    "QueryRequest": {"query": "What is the capital of France?", "max_tokens": 32},
    "ChatCompletionRequest": {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
    },
    "EmbeddingRequest": {"input": ["A dog runs in the park.", "Interest rates rose again."]},
}
_RETRY: Final = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer"}}}
_WITH: Final = {429: {**_ALLOWANCE, **_RETRY}, 503: _RETRY}


def _content(name: str, media: str = "application/json") -> dict[str, Any]:
    return {media: {"schema": {"$ref": _REF.format(name=name)}}}


def _answer(description: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"description": description, "headers": {**_HEADERS, **more}, "content": content}


def _errors(*statuses: int, openai: bool = False) -> dict[str, Any]:
    content = (
        {"application/json": {"schema": {"$ref": _REF.format(name="OpenAIError")}}}
        if openai
        else _content("Problem", "application/problem+json")
    )
    return {
        str(status): _answer(_DETAILS[status], content, **_WITH.get(status, {})) for status in sorted(set(statuses))
    }


_ASKING: Final = (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 431, 500, 502, 503, 504)
_STREAM: Final = {"text/event-stream": {"schema": {"type": "string"}}}


def _post(summary: str, body: str, answers: dict[str, Any], *, openai: bool = False) -> dict[str, Any]:
    return {
        "summary": summary,
        "security": [{"key": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {**_content(body)["application/json"], "example": _EXAMPLES[body]}},
        },
        # OpenAI answers 400 where v1 answers 422.
        "responses": {**answers, **_errors(*(s for s in _ASKING if not (openai and s == 422)), openai=openai)},
    }


def _get(summary: str, answer: dict[str, Any], *errors: int, openai: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "summary": summary,
        **more,
        "responses": {"200": answer, **_errors(*errors, 400, 421, 431, 500, openai=openai)},
    }


def _parameter(name: str, description: str, example: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": description,
            "schema": {"type": "string"},
            "example": example,
        }
    ]


def _paths() -> dict[str, Any]:
    chat = _answer("The answer, whole or as a stream.", {**_content("ChatCompletion"), **_STREAM}, **_ALLOWANCE)
    query = _answer("The answer; a stream when asked for.", {**_content("QueryResponse"), **_STREAM}, **_ALLOWANCE)
    events = _answer(
        "Events `token` (TokenPiece), `restart` (Restart: drop all text so far) and one `done` (QueryResponse) or "
        "`error` (Problem).",
        _STREAM,
        **_ALLOWANCE,
        **{"X-OWM-Query-Id": {"description": "To fetch the answer again by.", "schema": {"type": "string"}}},
    )
    return {
        "/v1/query": {"post": _post("Ask, and get the whole answer", "QueryRequest", {"200": query})},
        "/v1/query/stream": {"post": _post("Ask, and watch the answer come", "QueryRequest", {"200": events})},
        "/v1/query/{query_id}": {
            "get": _get(
                "Fetch an answer again, within an hour",
                _answer("The answer.", _content("QueryResponse")),
                401,
                403,
                404,
                security=[{"key": []}],
                parameters=_parameter(
                    "query_id", "As in the answer, or in X-OWM-Query-Id.", "qry_01JDF0Q8M3V5X7Z9B1C3D5F7H9"
                ),
            )
        },
        "/v1/network/nodes": {"get": _get("The workers, under pseudonyms", _answer("Workers.", _content("Nodes")))},
        "/v1/network/stats": {"get": _get("The network in numbers", _answer("Numbers.", _content("Statistics")))},
        "/v1/chat/completions": {
            "post": _post("OpenAI: chat completion", "ChatCompletionRequest", {"200": chat}, openai=True)
        },
        "/v1/models": {"get": _get("OpenAI: models", _answer("Served models.", _content("ModelList")), openai=True)},
        "/v1/models/{model}": {
            "get": _get(
                "OpenAI: one model",
                _answer("The model.", _content("ModelEntry")),
                404,
                openai=True,
                parameters=_parameter("model", "Its id.", "smollm2-135m-instruct"),
            )
        },
        "/v1/embeddings": {
            "post": _post(
                "OpenAI: embeddings",
                "EmbeddingRequest",
                {"200": _answer("Unit vectors.", _content("EmbeddingList"), **_ALLOWANCE)},
                openai=True,
            )
        },
        "/healthz": {"get": _get("Whether the gateway takes work", _answer("It does.", _content("Health")), 503)},
    }


def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    _, schemas = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    schemas["OpenAIError"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Open World Model gateway",
            "version": __version__,
            "description": "Many models, run by many peers, answer as one. Errors of v1 are RFC 7807 problems; those "
            "of the OpenAI dialect have OpenAI's shape. Breaking changes get a new prefix.",
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "From the gateway's operator: `owm keys add`.",
                }
            },
        },
    }


def openapi_routes(gateway: Gateway) -> Blueprint:
    """GET /openapi.json."""
    routes = Blueprint("openapi", __name__)
    body = msgspec.json.encode(document())

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return TrioResponse(body, content_type="application/json")

    return routes
