"""The public HTTP API of a gateway (SRS 4.8): v1, the OpenAI dialect, API keys and the landing page.

Importing this package loads no web framework: ``create_app`` and ``serve`` are fetched when first used, so that
``owm keys`` and every peer that is no gateway stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from owm.api._backend import (
    Answered,
    AnswerEvent,
    Backend,
    NetworkStatistics,
    NodeInfo,
    Restarted,
    Started,
    TokenText,
)
from owm.api.errors import ApiError, BadRequest, Busy, NoWorker, PromptTooLarge, Stopping, TimedOut, WorkFailed
from owm.api.keys import ApiKey, KeyStore, NewKey

if TYPE_CHECKING:
    from owm.api._app import create_app
    from owm.api._server import serve

__all__ = [
    "AnswerEvent",
    "Answered",
    "ApiError",
    "ApiKey",
    "Backend",
    "BadRequest",
    "Busy",
    "KeyStore",
    "NetworkStatistics",
    "NewKey",
    "NoWorker",
    "NodeInfo",
    "PromptTooLarge",
    "Restarted",
    "Started",
    "Stopping",
    "TimedOut",
    "TokenText",
    "WorkFailed",
    "create_app",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from owm.api._app import create_app

        return create_app
    if name == "serve":
        from owm.api._server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
