"""Responses that are produced while they are sent, inside one scope that owns everything they hold.

Quart streams from async generators, whose ``finally`` does not run when a client leaves before the body starts. Here a
response carries an async function instead. It runs in the request's own task, which is cancelled when the client goes
away, so every ``async with`` in it is left at once, wherever it stood.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from quart import Request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioResponse

from owm.api._metrics import Metrics
from owm.api._problems import error_body
from owm.api.errors import INTERNAL, ApiError

__all__ = ["HttpConnection", "MeteredApp", "Sink", "StreamedResponse"]

Send = Callable[[Any], Awaitable[None]]
_log = structlog.get_logger(__name__)


class Sink:
    """Where a streamed response writes. Nothing is sent before the first :meth:`write`."""

    def __init__(self, send: Send, response: StreamedResponse) -> None:
        self._send = send
        self._response = response
        self.started = False

    def set_header(self, name: str, value: str) -> None:
        """Replace a header; without effect once the response has started."""
        self._response.headers[name] = value

    async def write(self, data: bytes) -> None:
        """Send a piece of the body, the status line and headers before the first one.

        It is sent whole or not at all, so that an event can follow a piece whose work was cut; a client that takes
        nothing is dropped by the server's write deadline.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await self._begin(self._response.status_code)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        with trio.CancelScope(shield=True):
            await self._begin(self._response.status_code)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError, path: str) -> None:
        """Send the error as the whole response; only before anything was sent."""
        status, content_type, body = error_body(error, path)
        self.set_header("Content-Type", content_type)
        self.set_header("Content-Length", str(len(body)))
        if error.retry_after is not None:
            self.set_header("Retry-After", str(error.retry_after))
        await self._begin(status)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self, status: int) -> None:
        if self.started:
            return
        self.started = True
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self._response.headers.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


class StreamedResponse(TrioResponse):
    """Server-sent events (SRS-API-05) written by ``produce(sink)``.

    What ``produce`` raises before its first write becomes an ordinary error response, with its status; later it becomes
    the stream's last event.

    Args:
        produce: writes the events.
        error_event: the event that tells of an error, in the dialect's form.
        path: of the request; it decides the form of an error response.
    """

    def __init__(
        self, produce: Callable[[Sink], Awaitable[None]], error_event: Callable[[ApiError], bytes], path: str
    ) -> None:
        super().__init__(b"", content_type="text/event-stream; charset=utf-8")
        self.headers.pop("Content-Length", None)
        self.headers["Cache-Control"] = "no-store"
        self.headers["X-Accel-Buffering"] = "no"  # a proxy must not hold tokens back
        self.timeout = None  # the work has its own deadline
        self._produce = produce
        self._error_event = error_event
        self._path = path

    async def run(self, send: Send) -> None:
        """Produce and send the whole response."""
        sink = Sink(send, self)
        try:
            await self._produce(sink)
        except ApiError as error:
            await self._fail(sink, error)
        except Exception as error:  # noqa: BLE001 - said to the client as any other error, and kept in the log
            _log.error("a stream failed", path=self._path, error=repr(error), exc_info=error)
            await self._fail(sink, ApiError(INTERNAL))
        else:
            await sink.finish()

    async def _fail(self, sink: Sink, error: ApiError) -> None:
        if sink.started:
            await sink.write(self._error_event(error))
            await sink.finish()
        else:
            await sink.fail(error, self._path)


class MeteredApp(QuartTrio):
    """An app that counts its responses."""

    metrics: Metrics


class HttpConnection(TrioASGIHTTPConnection):
    """Sends streamed responses their own way, all others as Quart does; counts both when they are out."""

    app: MeteredApp

    async def handle_request(self, nursery: trio.Nursery, request: Request, send: Send) -> None:  # type: ignore[override]
        began = trio.current_time()
        status = "gone"

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await super().handle_request(nursery, request, noting)
        finally:
            route = request.url_rule.rule if request.url_rule is not None else "other"
            self.app.metrics.responded(route, status, trio.current_time() - began)

    async def _send_response(self, send: Send, response: Any) -> None:
        if isinstance(response, StreamedResponse):
            await response.run(send)
        else:
            await super()._send_response(send, response)
