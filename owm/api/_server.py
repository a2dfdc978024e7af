"""Serves the app with hypercorn's HTTP/1.1 on trio, with the deadlines that hypercorn leaves open.

hypercorn shields its writes from cancellation, so a client that stops reading would hold its request for ever. Here
every write has a deadline inside the shield, the kernel gives up on a peer whose window stays shut, and the send buffer
is small enough that an answer cannot hide in it. HTTP/2 is not offered: its flow control would let a client stall a
stream above the socket, where no write deadline sees it. What a client sends ahead waits, up to 64 KiB of it.
"""

from __future__ import annotations

import http
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app

from owm.api._app import GatewayApp
from owm.api._problems import error_body
from owm.api.errors import ApiError, BadRequest, HeadTooLarge
from owm.config import ApiSettings

__all__ = ["serve"]

_SEND_BUFFER = 32 * 1024  #: bytes that the kernel keeps for a client
_MAX_AHEAD = 64 * 1024  #: bytes that a client may send before its answer is out
_MAX_HEAD = 16 * 1024  #: bytes of a request's first line and headers
_KEEP_ALIVE = 30.0  #: seconds for the next request's head to arrive complete
_Refusal = Callable[[int], list[tuple[str, str]]]
_log = structlog.get_logger(__name__)


@asynccontextmanager
async def serve(app: GatewayApp, settings: ApiSettings, *, grace: float | None = None) -> AsyncIterator[str]:
    """Serve the app inside the block.

    Leaving the block refuses new work (503 with Retry-After) while what runs is completed, for up to ``grace`` seconds;
    then it is cut: a stream gets its error event, a request in work its 503. Only then the listener is closed.
    Cancelling the block resets every connection at once.

    Args:
        app: from ``create_app``.
        settings: host and port (0 lets the system choose), write deadline, bounds.
        grace: seconds for what runs at the end; as long as a query may take when left out.

    Yields:
        The URL to reach it under.

    Raises:
        OSError: the address cannot be bound.
        TemporaryError: the file of the keys cannot be read.
    """
    listeners = await trio.open_tcp_listeners(settings.port, host=settings.host, backlog=1024)
    for extra in listeners[1:]:
        await extra.aclose()
    listener = listeners[0]
    port = listener.socket.getsockname()[1]
    server = _Server(app, settings)
    try:
        async with app.gateway.running(), trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, server.handle, [listener], handler_nursery=connections)
                )
                try:
                    yield _url(settings.host, port)
                    patience = settings.query_timeout if grace is None else grace
                    if not await app.gateway.work.drain(patience):
                        _log.warning("answers were cut off", seconds=patience)
                except BaseException:
                    server.abort()
                    raise
                finally:
                    accepting.cancel_scope.cancel()
            await server.context.terminated.set()
            # What is left is written: errors of what was cut, ends of what was complete.
            connections.cancel_scope.deadline = trio.current_time() + settings.write_timeout
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()


class _Server:
    def __init__(self, app: GatewayApp, settings: ApiSettings) -> None:
        self._settings = settings
        self._gateway = app.gateway
        self._streams: set[trio.SocketStream] = set()
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = _KEEP_ALIVE
        self._config.h11_max_incomplete_size = _MAX_HEAD
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self.context = WorkerContext(None)
        # Requests have their own bound, with a proper answer; beyond this not even that is affordable.
        self._max_connections = settings.max_concurrent * 2 + 64

    async def handle(self, stream: trio.SocketStream) -> None:
        if len(self._streams) >= self._max_connections:
            _abort(stream)
            return
        self._streams.add(stream)
        try:
            guarded = _GuardedStream(stream, self._settings.write_timeout)
            await _Connection(self._app, self._config, self.context, guarded, self._refusal).run()
        except Exception as error:  # noqa: BLE001 - one connection must never end the gateway
            _log.error("connection failed", error=type(error).__name__)
        finally:
            self._streams.discard(stream)

    def abort(self) -> None:
        """Reset every connection, also those whose client takes nothing."""
        for stream in self._streams:
            _abort(stream)

    def _refusal(self, status: int) -> list[tuple[str, str]]:
        """Headers for the answer to what never became a request: those that all responses have."""
        self._gateway.metrics.responded("other", str(status), 0.0)
        return [
            ("X-OWM-Model-Version", self._gateway.version()),
            ("X-OWM-OTS-Verified", "false"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Connection", "close"),
        ]


class _GuardedStream:
    """A socket stream on which no write takes longer than the deadline; past it the connection is reset."""

    def __init__(self, stream: trio.SocketStream, write_timeout: float) -> None:
        self._stream = stream
        self._write_timeout = write_timeout
        self.socket = stream.socket
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Also covers what was written and never fetched, after the request has ended.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_timeout * 1000))

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self._write_timeout) as deadline:
            await self._stream.send_all(data)
        if deadline.cancelled_caught:
            _abort(self._stream)
            raise trio.BrokenResourceError("the client stopped reading")

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Connection(TCPServer):  # type: ignore[misc]
    """One client."""

    def __init__(
        self, app: Any, config: Config, context: WorkerContext, stream: _GuardedStream, refusal: _Refusal
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)
        self._refusal = refusal
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        try:
            raw = self.stream.socket
            client = parse_socket_addr(raw.family, raw.getpeername())
            server = parse_socket_addr(raw.family, raw.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = _Http11(
                    self.app, self.config, self.context, task_group, self.state, False, client, server,
                    self.protocol_send, refusal=self._refusal,
                )  # fmt: skip
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
                await self.idle_task.stop()
        except OSError:
            pass  # the client is gone
        finally:
            await self._close()

    async def protocol_send(self, event: Any) -> None:
        await super().protocol_send(event)
        if isinstance(event, Closed):
            # The reader may wait for an app that no longer takes the body; nothing it reads matters now.
            self._reading.cancel()

    async def _read_data(self) -> None:
        with self._reading:
            while True:
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                if not data:
                    break  # a half-closed connection counts as gone: nobody could tell it from a dead one
                await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())


class _Pipelined(Exception):
    """The client sent more before its first request was answered."""


class _Refused(Exception):
    """A request that is answered here and never reaches the app.

    Args:
        status: of HTTP.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _NoReading:
    """Stands where hypercorn waits for the response before it reads on, blind to the client's leaving."""

    async def clear(self) -> None:
        raise _Pipelined

    async def set(self) -> None:
        pass

    async def wait(self) -> None:
        raise _Pipelined


class _Http11(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 and nothing else. What a client sends ahead of an answer waits until the answer is out."""

    def __init__(self, *args: Any, refusal: _Refusal) -> None:
        super().__init__(*args)
        self._refusal = refusal
        self.can_read = _NoReading()
        self._parsing = trio.Lock()
        self._paused = False
        self._flooded = False
        self._ahead = bytearray()

    async def handle(self, event: Any) -> None:
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        async with self._parsing:
            if not self._paused:
                await self._parse(event.data)
            elif len(self._ahead) + len(event.data) <= _MAX_AHEAD:
                self._ahead += event.data
            else:
                self._flooded = True  # dropped; the connection closes after the answer

    async def _parse(self, data: bytes) -> None:
        try:
            self.connection.receive_data(data)
            await self._handle_events()
        except _Pipelined:
            self._paused = True
        except _Refused as refused:
            await self._refuse(refused.status)

    async def _resume(self) -> None:
        async with self._parsing:
            self._paused = False
            data = bytes(self._ahead)
            self._ahead.clear()
            try:
                await self._handle_events()  # what the parser held already
                if data and not self._paused:
                    await self._parse(data)
            except _Pipelined:
                self._paused = True
                self._ahead[:0] = data
            except _Refused as refused:
                await self._refuse(refused.status)

    async def _refuse(self, status: int) -> None:
        await self._send_error_response(status)
        await self.send(Closed())

    async def _check_protocol(self, event: Any) -> None:
        """No upgrade to HTTP/2, no HTTP/2 that is simply assumed, and no head that is too long though it is whole.

        h11 bounds only a head that is still incomplete, so one that comes at once would pass at any length.
        """
        if event.http_version not in (b"1.0", b"1.1"):
            raise _Refused(505)
        if len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers) > _MAX_HEAD:
            raise _Refused(431)

    async def _create_stream(self, request: Any) -> None:
        """No upgrade to WebSocket either: who asks for one gets an ordinary answer."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        """What never became a request is answered as a problem too."""
        status, content_type, body = error_body(_not_a_request(status_code), "")
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), *self._refusal(status)]
        reason = http.HTTPStatus(status).phrase
        await self._send_h11_event(h11.Response(status_code=status, headers=headers, reason=reason))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        if self._flooded:
            await self._close_stream()
            await self.send(Closed())
            return
        # We are in the request's own task, which is being cancelled: it is told of its end as of a disconnect.
        with trio.CancelScope(shield=True):
            await super()._maybe_recycle()
        if self._paused and self.connection.our_state is h11.IDLE:
            self.task_group.spawn(self._resume)


def _not_a_request(status: int) -> ApiError:
    if status == 431:
        return HeadTooLarge(f"the request's head may have at most {_MAX_HEAD} bytes; send fewer or shorter headers")
    return BadRequest("this is not an HTTP/1.1 request; check what the client sends")


def _abort(stream: trio.SocketStream) -> None:
    """Reset the connection: nothing that is still buffered is kept for the client."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
