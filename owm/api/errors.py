"""What the API answers instead of an answer. Each class is one problem type (RFC 7807) with its HTTP status.

The message is shown to the client; it says what happened and what to do, and holds no internals.
"""

from __future__ import annotations

from typing import Final

from owm.errors import OwmError

__all__ = [
    "INTERNAL",
    "ApiError",
    "BadRequest",
    "Busy",
    "Forbidden",
    "HeadTooLarge",
    "Misdirected",
    "NoWorker",
    "NotFound",
    "PromptTooLarge",
    "RateLimited",
    "Stopping",
    "TimedOut",
    "Unauthorised",
    "Unprocessable",
    "UnsupportedMediaType",
    "WorkFailed",
]

#: All that a client is told of a failure that nobody foresaw; the rest stays in the log.
INTERNAL: Final = "the gateway failed; try again, and tell its operator, whose log says why"


class ApiError(OwmError):
    """The root: an error that has an HTTP status.

    Args:
        detail: what happened, for the client.
        field: the JSON path of the offending part of the body, where there is one.
        retry_after: seconds after which asking again may work.
    """

    status = 500
    kind = "internal"
    title = "Internal error"
    openai_type = "server_error"

    def __init__(self, detail: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class BadRequest(ApiError):
    """The request cannot be understood."""

    status, kind, title, openai_type = 400, "bad-request", "Bad request", "invalid_request_error"


class Unauthorised(ApiError):
    """No valid API key came with the request."""

    status, kind, title, openai_type = 401, "unauthorised", "API key needed", "authentication_error"


class Forbidden(ApiError):
    """The request comes from a page that may not ask."""

    status, kind, title, openai_type = 403, "forbidden", "Forbidden", "permission_error"


class NotFound(ApiError):
    """There is no such thing, or it belongs to somebody else."""

    status, kind, title, openai_type = 404, "not-found", "Not found", "invalid_request_error"


class PromptTooLarge(ApiError):
    """The prompt exceeds the budget; no work was done."""

    status, kind, title = 413, "prompt-too-large", "Prompt too large"
    openai_type = "invalid_request_error"


class UnsupportedMediaType(ApiError):
    """The body is not JSON."""

    status, kind, title = 415, "unsupported-media-type", "Unsupported media type"
    openai_type = "invalid_request_error"


class Misdirected(ApiError):
    """The Host header names none of this gateway's names (protection against DNS rebinding)."""

    status, kind, title = 421, "misdirected", "Unknown host"
    openai_type = "invalid_request_error"


class Unprocessable(ApiError):
    """The body is JSON, but a field of it is wrong; the field is named."""

    status, kind, title, openai_type = 422, "unprocessable", "A field is wrong", "invalid_request_error"


class RateLimited(ApiError):
    """The key's or address's sliding window is full."""

    status, kind, title, openai_type = 429, "rate-limited", "Too many requests", "rate_limit_error"


class HeadTooLarge(ApiError):
    """The request's first line and headers are longer than any that make sense here."""

    status, kind, title = 431, "head-too-large", "Request head too large"
    openai_type = "invalid_request_error"


class WorkFailed(ApiError):
    """A worker took the task and could not finish it, and no other worker could."""

    status, kind, title = 502, "work-failed", "The worker failed"


class NoWorker(ApiError):
    """No worker that serves the model is available right now."""

    status, kind, title = 503, "no-worker", "No worker available"


class Busy(ApiError):
    """The gateway has as many requests in work as it may have."""

    status, kind, title = 503, "busy", "Gateway busy"


class Stopping(ApiError):
    """The gateway is being stopped: it takes no new work, or cut what ran."""

    status, kind, title = 503, "stopping", "Gateway stopping"


class TimedOut(ApiError):
    """The answer was not complete within the gateway's time limit."""

    status, kind, title = 504, "timed-out", "Time limit reached"
