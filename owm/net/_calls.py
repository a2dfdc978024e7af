"""Calls between peers: requests with one answer or many, over streams that stay open.

Opening and negotiating a stream costs a round trip and much CPU, so the calls of one protocol to one peer share a
stream. It is opened when first needed and again after it broke; calls that were under way then fail, later ones do not
notice. Messages are bounded in size, answers in time, and what waits unread in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self

import trio

from owm.identity import PeerId
from owm.net._call_client import ClientSession, OutgoingCall
from owm.net._call_server import CallHandler, ServerLimits, ServerSession
from owm.net._interface import Network, Penalty, Stream
from owm.net._quota import QuotaTable, Rate
from owm.net._turns import take_turn
from owm.net.errors import NetworkError, ProtocolViolation, RemoteError, RequestTimeout, StreamReset

__all__ = ["Calls"]

_OPEN_SECONDS: Final = 10.0


class Calls:
    """One protocol's calls, made and answered. Use as ``async with calls.running():``.

    Args:
        network: running, or about to.
        protocol: its id; both sides must agree on it and, within reason, on the sizes.
        max_request: bytes of the largest request, and of any further message of the client.
        max_response: bytes of the largest reply.
        max_calls: calls at once per peer and direction; we wait beyond it, others are told that we are busy.
        longest: seconds a handler of ours may run, whatever deadline the client gave.
        rate: requests per second that a peer may make of us and we make of it, or None for no limit.
        control: the calls keep us in the network, see :meth:`Network.handle`.
    """

    def __init__(
        self,
        network: Network,
        protocol: str,
        *,
        max_request: int = 1 << 20,
        max_response: int = 1 << 20,
        max_calls: int = 64,
        longest: float = 600.0,
        rate: Rate | None = None,
        control: bool = False,
    ) -> None:
        self.protocol = protocol
        self._control = control
        self._network = network
        self._limits = ServerLimits(max_request, max_response, max_calls, longest)
        self._sessions: dict[PeerId, ClientSession] = {}
        self._opening: dict[PeerId, trio.Event] = {}
        self._slots: dict[PeerId, trio.CapacityLimiter] = {}
        self._answering: Counter[PeerId] = Counter()
        self._inbound = QuotaTable(rate) if rate else None
        self._outbound = QuotaTable(rate) if rate else None
        self._handler: CallHandler | None = None
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Own the streams to others until the block ends, which fails the calls still under way."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None

    def serve(self, handler: CallHandler, *, max_streams: int = 8) -> None:
        """Answer calls with ``handler``, each in its own task.

        The call ends when the handler returns; a RemoteError that it raises is passed on in words, any other exception
        only as a failure. ``max_streams`` bounds a peer's streams: one for all shared calls, one per bulk call.
        """
        self._handler = handler
        self._network.handle(self.protocol, self._on_stream, max_streams=max_streams, control=self._control)

    async def request(
        self, peer: PeerId, payload: bytes, *, timeout: float = 10.0, max_response: int | None = None
    ) -> bytes:
        """One request, one answer, within ``timeout`` seconds.

        Raises:
            RequestTimeout: no answer in time.
            RemoteError: the peer said that it cannot.
            NotConnected, ProtocolNotSupported, StreamReset, FrameTooLarge: as their names say.
            ValueError: the payload exceeds ``max_request``.
        """
        async with self.stream(peer, payload, timeout=timeout, max_response=max_response) as call:
            answer = await call.receive()
            if answer is None:
                raise RemoteError(f"{peer.short} ended the call without an answer")
            return answer

    @asynccontextmanager
    async def stream(
        self,
        peer: PeerId,
        payload: bytes,
        *,
        timeout: float | None = None,
        max_response: int | None = None,
        bulk: bool = False,
    ) -> AsyncIterator[OutgoingCall]:
        """One request, any number of replies; iterate over the call inside the block.

        Leaving the block cancels the call at the peer. ``timeout`` bounds the whole block. A ``bulk`` call has a
        stream of its own that yields to small messages.

        Raises:
            RequestTimeout: the time is up.
            NotConnected, ProtocolNotSupported, StreamReset: there is no way to the peer.
            TooManyStreams: our own quota with the peer is used up for half a minute ahead.
            ValueError: the payload exceeds ``max_request``.
        """
        if len(payload) > self._limits.max_request:
            raise ValueError(f"a request of {len(payload)} bytes, where {self._limits.max_request} are allowed")
        largest = min(max_response or self._limits.max_response, self._limits.max_response)
        deadline = float("inf") if timeout is None else trio.current_time() + timeout
        # Not fail_after: a TooSlowError of the caller's own must not be taken for ours.
        with trio.CancelScope(deadline=deadline) as scope:
            async with self._slot(peer):
                session = await (self._open(peer, bulk=True) if bulk else self._shared(peer))
                call = await session.start(payload, timeout, largest)
                try:
                    yield call
                finally:
                    session.leave(call)
                    if bulk:
                        session.close(NetworkError("the call was left"))
        if scope.cancelled_caught:
            raise RequestTimeout(f"{peer.short} did not answer within {timeout:g} s")

    @asynccontextmanager
    async def _slot(self, peer: PeerId) -> AsyncIterator[None]:
        """Wait for one of the peer's slots and for the quota of what we send."""
        limiter = self._slots.setdefault(peer, trio.CapacityLimiter(self._limits.max_calls))
        owner = object()
        await limiter.acquire_on_behalf_of(owner)
        try:
            if self._outbound is not None:
                wait = self._outbound.reserve(peer, 1, trio.current_time())
                await take_turn(wait, partial(self._outbound.refund, peer, 1), peer)
            yield
        finally:
            limiter.release_on_behalf_of(owner)
            if not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
                self._slots.pop(peer, None)

    async def _shared(self, peer: PeerId) -> ClientSession:
        while True:
            session = self._sessions.get(peer)
            if session is not None and not self._network.is_connected(peer):
                session.close(StreamReset("the connection is gone"))  # it may not have noticed yet
            if session is not None and session.is_open:
                return session
            if peer not in self._opening:
                break
            await self._opening[peer].wait()
        opened = self._opening[peer] = trio.Event()
        try:
            session = self._sessions[peer] = await self._open(peer, bulk=False)
        finally:
            del self._opening[peer]
            opened.set()
        return session

    async def _open(self, peer: PeerId, bulk: bool) -> ClientSession:
        with trio.move_on_after(_OPEN_SECONDS):
            stream = await self._network.open_stream(peer, self.protocol, bulk=bulk)
            if self._nursery is None:
                stream.reset()
                raise NetworkError("calls are made inside running() only")
            session = ClientSession(stream, self._limits.max_request, self._limits.max_response)
            self._nursery.start_soon(self._run, peer, session)
            return session
        raise RequestTimeout(f"{peer.short} did not open a stream within {_OPEN_SECONDS:g} s")

    async def _run(self, peer: PeerId, session: ClientSession) -> None:
        try:
            await session.run()
        finally:
            if self._sessions.get(peer) is session:
                del self._sessions[peer]
            if session.violation is not None:
                self._blame(peer, session.violation)

    async def _on_stream(self, stream: Stream) -> None:
        assert self._handler is not None
        session = ServerSession(stream, self._handler, self._limits, self._answering, self._inbound)
        violation = await session.run()
        stream.reset()
        if violation is not None:
            self._blame(stream.remote, violation)

    def _blame(self, peer: PeerId, violation: ProtocolViolation) -> None:
        self._network.penalise(peer, Penalty.LOW_TOLERANCE, type(violation).__name__)
