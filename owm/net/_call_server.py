"""The answering end of a stream of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from owm.identity import PeerId
from owm.net._call_stream import CallEnd, Outbox
from owm.net._core_calls import MAX_OVERHEAD, MAX_REASON, Kind, Message, decode
from owm.net._core_frames import FrameDecoder
from owm.net._interface import Stream
from owm.net._quota import QuotaTable
from owm.net.errors import NetworkError, ProtocolViolation, RemoteError, StreamReset

__all__ = ["Call", "CallHandler", "ServerLimits", "ServerSession"]

_log = structlog.get_logger(__name__)
_CHUNK: Final = 65536
_FRAME_SECONDS: Final = 120.0  # for one frame, however slowly its bytes drip in
# A cancelled handler may still be cleaning up when the client, within its rights, starts the next call.
_UNWINDING: Final = 2


class Call:
    """A request as its handler sees it. The handler's task is cancelled when the client loses interest."""

    def __init__(self, peer: PeerId, request: bytes, end: CallEnd, scope: trio.CancelScope) -> None:
        self.peer = peer
        self.request = request
        self._end = end
        self._scope = scope

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: left by the client, past its deadline, or disconnected."""
        return self._scope.cancel_called

    async def reply(self, message: bytes) -> None:
        """Send one reply; waits while the client does not read.

        Raises:
            StreamReset: the client went away.
            ValueError: larger than ``max_response``.
        """
        await self._end.send(message)

    async def receive(self) -> bytes | None:
        """The client's next message after the request, or None when it has finished. Cancellation loses nothing."""
        return await self._end.receive()


CallHandler = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one peer may ask for."""

    max_request: int
    max_response: int
    max_calls: int  #: of one peer at once, over all its streams
    longest: float  #: seconds that a handler may run


class ServerSession:
    """One stream and the calls that the peer makes over it.

    Args:
        active: calls under way by peer, shared by the sessions of one protocol.
        quota: requests a peer may start, or None.
    """

    def __init__(
        self,
        stream: Stream,
        handler: CallHandler,
        limits: ServerLimits,
        active: Counter[PeerId],
        quota: QuotaTable | None,
    ) -> None:
        self._stream = stream
        self._peer = stream.remote
        self._handler = handler
        self._limits = limits
        self._active = active
        self._quota = quota
        self._outbox = Outbox(stream)
        self._calls: dict[int, tuple[CallEnd, trio.CancelScope]] = {}
        self._last = -1
        self._nursery: trio.Nursery | None = None

    async def run(self) -> ProtocolViolation | None:
        """Serve until the client leaves, which cancels what still runs; returns what it did wrong, if anything."""
        violation = None
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write, self._nursery.cancel_scope)
                try:
                    await self._read()
                except ProtocolViolation as found:
                    violation = found
                except NetworkError as error:
                    _log.debug("a stream of calls ended", peer=self._peer.short, reason=str(error))
                self._nursery.cancel_scope.cancel()
        finally:
            self._outbox.fail(StreamReset("the stream of calls ended"))
        return violation

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            await self._outbox.run()
        except NetworkError:
            scope.cancel()

    async def _read(self) -> None:
        decoder = FrameDecoder(self._limits.max_request + MAX_OVERHEAD)
        deadline = float("inf")  # between frames a client may be silent as long as it likes
        while True:
            with trio.CancelScope(deadline=deadline) as scope:
                data = await self._stream.receive(_CHUNK)
            if scope.cancelled_caught:
                raise ProtocolViolation(f"a frame took longer than {_FRAME_SECONDS:g} s")
            if not data:
                return
            frames = decoder.feed(data)
            if not decoder.is_inside_frame:
                deadline = float("inf")
            elif frames or deadline == float("inf"):
                deadline = trio.current_time() + _FRAME_SECONDS
            for frame in frames:
                message = decode(frame)
                if message.kind is Kind.REQUEST:
                    await self._on_request(message)
                else:
                    self._on_message(message)

    async def _on_request(self, message: Message) -> None:
        if message.call <= self._last:
            raise ProtocolViolation("a call id was used again")
        self._last = message.call
        refusal = self._refusal()
        if refusal is not None:
            # Waits while the client does not read its answers, so that a flood of requests fills nothing.
            await self._outbox.put(Message(Kind.FAIL, message.call, refusal.encode()))
            return
        end = CallEnd(self._outbox, message.call, self._limits.max_response, self._limits.max_request)
        seconds = min(message.number / 1000 if message.number else float("inf"), self._limits.longest)
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._calls[message.call] = (end, scope)
        self._active[self._peer] += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._answer, Call(self._peer, message.body, end, scope), end, scope)

    def _refusal(self) -> str | None:
        if len(self._calls) >= self._limits.max_calls or (
            self._active[self._peer] >= self._limits.max_calls * _UNWINDING
        ):
            return "busy: too many calls at once"
        if self._quota is not None and not self._quota.take(self._peer, 1, trio.current_time()):
            return "too many requests: ask less often"
        return None

    def _on_message(self, message: Message) -> None:
        if message.call > self._last or message.kind is Kind.FAIL:
            raise ProtocolViolation(f"a {message.kind.name} for a call that was never made")
        known = self._calls.get(message.call)
        if known is None:
            return  # it was over before the client knew
        end, scope = known
        match message.kind:
            case Kind.MESSAGE:
                if end.finished:
                    raise ProtocolViolation("a message after the last one")
                end.on_message(message.body)
            case Kind.CREDIT:
                end.on_credit(message.number)
            case Kind.FINISH:
                end.end()
            case _:
                del self._calls[message.call]
                end.end(StreamReset("the client left the call"))
                scope.cancel()

    async def _answer(self, call: Call, end: CallEnd, scope: trio.CancelScope) -> None:
        last = Message(Kind.FINISH, end.id)
        try:
            with scope:
                try:
                    await self._handler(call)
                except RemoteError as error:
                    last = _failure(end.id, str(error))
                except Exception as error:  # noqa: BLE001 - a handler's bug must not take the other calls with it
                    if end.error is None:
                        _log.exception("a call failed", protocol=self._stream.protocol, error=repr(error))
                    last = _failure(end.id, "the peer failed to answer")
            if scope.cancelled_caught:
                last = _failure(end.id, "the peer did not finish in time")
            if self._calls.pop(end.id, None) is not None:
                await self._outbox.put(last)
        except StreamReset:
            return  # nobody is left to be told
        finally:
            self._calls.pop(end.id, None)
            self._active[self._peer] -= 1
            if not self._active[self._peer]:
                del self._active[self._peer]


def _failure(call: int, reason: str) -> Message:
    return Message(Kind.FAIL, call, reason.encode()[:MAX_REASON])
