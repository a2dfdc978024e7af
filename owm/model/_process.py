"""The engine process as its peer sees it: started, watched, spoken to, killed.

The child is spawned from trio's own thread: the kernel's parent-death signal follows the thread that forked, and
trio's worker threads end after ten idle seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import structlog
import trio

from owm.model._core_frames import FrameReader, pack
from owm.model.errors import BadWeights, EngineCrashed, EngineError, ReaderTooSlow

__all__ = ["EngineCall", "EngineProcess"]

_log = structlog.get_logger(__name__)

_READY: Final = 120.0  # a large model takes long to load
_STOP: Final = 2.0
_WRITE: Final = 10.0
_BACKLOG: Final = 4096


class EngineCall:
    """The messages of one job as they come. Iterating raises EngineCrashed or ReaderTooSlow when no more can come."""

    def __init__(self, backlog: int) -> None:
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](backlog)
        self._error: EngineError = EngineCrashed("the engine died while it worked; it is being restarted")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise self._error from None

    def deliver(self, message: dict[str, Any]) -> bool:
        """Hand on one message; False when too many wait to be read, which ends the call."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self.end(ReaderTooSlow("the answer was not read while the engine wrote it; it was cancelled"))
            return False
        return True

    def end(self, error: EngineError | None = None) -> None:
        """Nothing more comes after what waits already."""
        self._error = error or self._error
        self._send.close()


class EngineProcess:
    """One child and the calls that are under way in it.

    Args:
        settings: what the child needs, as JSON; see :mod:`owm.model.engine_main`.
        environment: variables for the child beside our own, which win.
        backlog: messages of one call that may wait to be read; then it is cancelled.
    """

    def __init__(
        self, settings: dict[str, Any], environment: Mapping[str, str] | None = None, backlog: int = _BACKLOG
    ) -> None:
        self._settings = settings
        self._environment = dict(environment or {})
        self._backlog = backlog
        self._nursery: trio.Nursery | None = None
        self._calls: dict[int, EngineCall] = {}
        self._next = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._input: trio.lowlevel.FdStream | None = None
        self._sending = trio.Lock()
        self.hello: dict[str, Any] = {}
        self.ended = trio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the child, wait until its models are loaded, serve calls; kill it at the end.

        Raises:
            BadWeights: it could not load its models; the message says why.
            EngineCrashed: it ended before it was ready.
        """
        process = subprocess.Popen(  # noqa: S603, ASYNC220 - see the module's docstring
            [sys.executable, "-m", "owm.model.engine_main", json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**self._environment, **os.environ, "OWM_PARENT": str(os.getpid())},
        )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        incoming = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        self._input = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
        process.stdin.close()
        process.stdout.close()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                ready = trio.Event()
                nursery.start_soon(self._read, incoming, ready)
                with trio.move_on_after(_READY):
                    await ready.wait()
                if "failed" in self.hello:
                    raise BadWeights(f"the engine could not load its model: {self.hello['failed']}")
                if "ready" not in self.hello:
                    raise EngineCrashed(f"the engine was not ready (exit code {process.poll()})")
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._stop(process)
                await incoming.aclose()

    async def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Let it go by the end of its input, kill it when it does not."""
        assert self._input is not None
        await self._input.aclose()
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            process.wait()
            return
        try:
            with trio.move_on_after(_STOP if not self._calls else 0.0):
                await trio.lowlevel.wait_readable(descriptor)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                await trio.lowlevel.wait_readable(descriptor)
            process.wait()
        finally:
            os.close(descriptor)

    async def _read(self, incoming: trio.lowlevel.FdStream, ready: trio.Event) -> None:
        reader = FrameReader()
        try:
            while data := await incoming.receive_some(1 << 16):
                for message in reader.feed(bytes(data)):
                    if "id" in message:
                        self._deliver(message)
                    else:
                        self.hello = message
                        ready.set()
        except (ValueError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.error("the engine's pipe broke", reason=str(error))
        finally:
            self.ended.set()
            ready.set()
            for call in self._calls.values():
                call.end()
            self._calls.clear()

    def _deliver(self, message: dict[str, Any]) -> None:
        number = message["id"]
        call = self._calls.get(number)
        if call is None:
            return  # cancelled meanwhile
        if not call.deliver(message):
            del self._calls[number]
            assert self._nursery is not None
            self._nursery.start_soon(self._cancel, number)

    async def _cancel(self, number: int) -> None:
        try:
            await self.send({"op": "cancel", "id": number})
        except EngineCrashed:
            _log.debug("the engine ended before it could be told to cancel")

    async def send(self, message: dict[str, Any]) -> None:
        """Write one message whole; raises EngineCrashed."""
        if self._input is None or self.ended.is_set():
            raise EngineCrashed("the engine is not running; it is being restarted")
        try:
            # Shielded: a frame that is half written would corrupt all that follow.
            with trio.CancelScope(shield=True), trio.fail_after(_WRITE):
                async with self._sending:
                    await self._input.send_all(pack(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise EngineCrashed("the engine does not take work; it is being restarted") from error

    @asynccontextmanager
    async def call(self, **message: Any) -> AsyncIterator[EngineCall]:
        """Start a job and read its messages. Leaving cancels it, unless :meth:`done` was said.

        Raises:
            EngineCrashed: the engine is not there.
        """
        self._next += 1
        number = self._next
        call = self._calls[number] = EngineCall(self._backlog)
        try:
            await self.send({**message, "id": number})
            yield call
        finally:
            if self._calls.pop(number, None) is not None and not self.ended.is_set():
                with trio.CancelScope(shield=True):
                    await self._cancel(number)

    def done(self, number: int) -> None:
        """Forget a job whose last message has arrived: leaving its block then cancels nothing."""
        self._calls.pop(number, None)
