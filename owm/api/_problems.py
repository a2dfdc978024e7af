"""Errors as responses: RFC 7807 for v1 (SRS-API-04), OpenAI's own shape for its dialect."""

from __future__ import annotations

import re

import msgspec
from quart import Response
from quart_trio.wrappers import TrioResponse

from owm.api._bodies import Problem
from owm.api.errors import ApiError

__all__ = ["OPENAI_PATHS", "error_body", "error_response", "openai_error", "problem"]

#: Paths whose errors take OpenAI's shape.
OPENAI_PATHS = ("/v1/chat/", "/v1/models", "/v1/embeddings")

_NAMED = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")
_CODES = {
    "prompt-too-large": "context_length_exceeded",
    "unauthorised": "invalid_api_key",
    "rate-limited": "rate_limit_exceeded",
}


def problem(error: ApiError) -> Problem:
    """The error as a problem document."""
    return Problem(
        type=f"urn:owm:problem:{error.kind}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        field=error.field,
    )


def openai_error(error: ApiError) -> dict[str, object]:
    """The error as OpenAI writes it, with the field as it names fields: ``messages[0].role``."""
    field = error.field
    if field == "$" and (unknown := _NAMED.search(error.detail)) is not None:
        field = unknown["field"]
    return {
        "error": {
            "message": error.detail,
            "type": error.openai_type,
            "param": None if field is None else field.removeprefix("$."),
            "code": _CODES.get(error.kind, error.kind.replace("-", "_")),
        }
    }


def _openai_status(error: ApiError) -> int:
    # OpenAI answers 400 to prompts that are too long and to wrong fields; its clients branch on that.
    return 400 if error.kind in {"prompt-too-large", "unprocessable"} else error.status


def error_body(error: ApiError, path: str) -> tuple[int, str, bytes]:
    """Status, content type and body for an error on this path."""
    if path.startswith(OPENAI_PATHS):
        return _openai_status(error), "application/json", msgspec.json.encode(openai_error(error))
    return error.status, "application/problem+json", msgspec.json.encode(problem(error))


def error_response(error: ApiError, path: str) -> Response:
    """The response for an error on this path."""
    status, content_type, body = error_body(error, path)
    response = TrioResponse(body, status=status, content_type=content_type)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="owm"'
    return response
