"""Puts the API together: routes, errors, the headers that every response carries."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from quart import Response, g, request
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException

from owm.api._access import Access
from owm.api._backend import Backend
from owm.api._chat import chat_routes
from owm.api._gateway import Gateway
from owm.api._metrics import Metrics
from owm.api._network import network_routes
from owm.api._openapi import openapi_routes
from owm.api._page import page_routes
from owm.api._problems import error_response
from owm.api._query import query_routes
from owm.api._streams import HttpConnection, MeteredApp
from owm.api.errors import INTERNAL, ApiError, Busy
from owm.api.keys import KeyStore
from owm.clock import Clock, SystemClock
from owm.config import ApiSettings
from owm.errors import TemporaryError

__all__ = ["GatewayApp", "create_app"]

_log = structlog.get_logger(__name__)

_CORS_HEADERS = "Authorization, Content-Type"
_EXPOSED_HEADERS = (
    "Retry-After, X-OWM-Model-Version, X-OWM-OTS-Verified, X-OWM-Query-Id, X-RateLimit-Limit, X-RateLimit-Remaining"
)
_CORS_METHODS = "GET, POST, OPTIONS"
_KINDS = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    408: "timed-out",
    413: "body-too-large",
}


class _HttpError(ApiError):
    """An error that the web framework found, such as an unknown path."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = _KINDS.get(status, "http-error")
        self.title = title
        self.openai_type = "invalid_request_error" if status < 500 else "server_error"


class GatewayApp(MeteredApp):
    """The API as an ASGI app, and the gateway that its routes share."""

    asgi_http_class = HttpConnection
    gateway: Gateway


def create_app(
    backend: Backend,
    settings: ApiSettings,
    keys: KeyStore,
    clock: Clock | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    registry: CollectorRegistry | None = None,
) -> GatewayApp:
    """The API as an ASGI app.

    Args:
        backend: where answers come from.
        settings: limits, allowed hosts and origins.
        keys: API keys; changes that others make to the file are noticed within a second. What they have used is kept
            in the same file.
        clock: for windows, sessions and latencies.
        random_bytes: ids, session and pseudonym keys.
        registry: where the API's metrics are shown.
    """
    app = GatewayApp("owm.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = settings.write_timeout
    app.config["RESPONSE_TIMEOUT"] = None  # the work has its own deadline
    clock = clock or SystemClock()
    access = Access(settings, keys, clock, random_bytes)
    app.metrics = Metrics(registry)
    app.gateway = gateway = Gateway(backend, settings, access, clock, keys.path, random_bytes, app.metrics)
    for routes in (query_routes, chat_routes, network_routes, openapi_routes, page_routes):
        app.register_blueprint(routes(gateway))

    @app.before_request
    async def guard() -> Response | None:
        access.check_host(request)
        origin = request.headers.get("Origin", "")
        if request.method == "OPTIONS" and access.allows_origin(origin):
            return TrioResponse(status=204)
        return None

    @app.after_request
    async def finish(response: Response) -> Response:
        headers = response.headers
        headers.setdefault("X-OWM-Model-Version", gateway.version())
        headers.setdefault("X-OWM-OTS-Verified", "false")
        caller = g.get("caller")
        if caller is not None and (remaining := gateway.usage.remaining(caller)) is not None:
            headers["X-RateLimit-Limit"] = str(caller.per_day)
            headers["X-RateLimit-Remaining"] = str(remaining)
        headers.setdefault("X-Content-Type-Options", "nosniff")
        if gateway.work.stopping:
            headers["Connection"] = "close"  # the client's next request goes elsewhere
        headers.setdefault("Referrer-Policy", "no-referrer")
        origin = request.headers.get("Origin", "")
        if origin and access.allows_origin(origin):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Headers"] = _CORS_HEADERS
            headers["Access-Control-Allow-Methods"] = _CORS_METHODS
            headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            headers["Vary"] = "Origin"
        return response

    @app.errorhandler(ApiError)
    async def ours(error: ApiError) -> Response:
        return error_response(error, request.path)

    @app.errorhandler(HTTPException)
    async def framework(error: Any) -> Response:
        status = error.code or 500
        detail = {
            404: "there is no such path; GET /openapi.json lists what there is",
            405: f"{request.method} is not allowed here; GET /openapi.json lists what is",
            413: f"the body may have at most {settings.max_body_bytes} bytes: send less",
            408: f"the body did not arrive within {settings.write_timeout:g} s; send it again",
            500: INTERNAL,
        }.get(status, error.description or "the request cannot be served")
        response = error_response(_HttpError(status, error.name, detail), request.path)
        if status == 405 and getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(TemporaryError)
    async def passing(error: TemporaryError) -> Response:
        _log.warning("a request failed for now", path=request.path, error=str(error))
        return error_response(
            Busy("the gateway cannot look up keys at the moment; try again in 2 s", retry_after=2), request.path
        )

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        _log.error("a request failed", path=request.path, error=repr(error), exc_info=error)
        return error_response(ApiError(INTERNAL), request.path)

    return app
