"""The asking end of a stream of calls."""

from __future__ import annotations

from typing import Final

import trio

from owm.net._call_stream import CallEnd, Outbox
from owm.net._core_calls import MAX_OVERHEAD, Kind, Message, decode
from owm.net._core_frames import FrameDecoder
from owm.net._interface import Stream
from owm.net.errors import NetworkError, ProtocolViolation, RemoteError, StreamReset

__all__ = ["ClientSession", "OutgoingCall"]

_CHUNK: Final = 65536


class OutgoingCall:
    """A call under way, as the caller sees it: an asynchronous iterator over the replies."""

    def __init__(self, end: CallEnd, outbox: Outbox) -> None:
        self._end = end
        self._outbox = outbox
        self._done_sending = False

    def __aiter__(self) -> OutgoingCall:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def receive(self) -> bytes | None:
        """The next reply, or None when the peer's handler has returned. Cancellation loses nothing.

        Raises:
            RemoteError: the peer's handler failed.
            FrameTooLarge: a reply exceeds ``max_response``.
            StreamReset: the connection broke.
        """
        return await self._end.receive()

    async def send(self, message: bytes) -> None:
        """Send another message of this call; waits while the peer does not read them.

        Raises:
            RemoteError, StreamReset: the call is over.
            ValueError: larger than ``max_request``.
        """
        if self._done_sending or (self._end.finished and self._end.error is None):
            raise StreamReset("the call is over")
        await self._end.send(message)

    async def finish(self) -> None:
        """Tell the peer that no more messages follow; replies still come. Idempotent."""
        if not self._done_sending and not self._end.finished:
            self._done_sending = True
            await self._outbox.put(Message(Kind.FINISH, self._end.id))


class ClientSession:
    """One stream and the calls that we make over it.

    Args:
        stream: opened by us.
        max_request, max_response: bytes of the largest message each way.
    """

    def __init__(self, stream: Stream, max_request: int, max_response: int) -> None:
        self._stream = stream
        self._max_request = max_request
        self._max_response = max_response
        self._outbox = Outbox(stream)
        self._calls: dict[int, CallEnd] = {}
        self._next = 0
        self.is_open = True
        self.violation: ProtocolViolation | None = None  #: what the peer did wrong, if that ended the session

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def start(self, payload: bytes, timeout: float | None, max_response: int) -> OutgoingCall:
        """Send a request; pair with :meth:`leave`. Raises StreamReset."""
        await self._outbox.room()
        call = self._next
        self._next += 1
        end = self._calls[call] = CallEnd(self._outbox, call, self._max_request, max_response)
        # Rounded up: 0 means that there is no deadline.
        milliseconds = 0 if timeout is None else max(1, int(min(timeout, 1e9) * 1000))
        self._outbox.put_nowait(Message(Kind.REQUEST, call, payload, milliseconds))
        return OutgoingCall(end, self._outbox)

    def leave(self, call: OutgoingCall) -> None:
        """The caller is done; the peer is told to stop if it is not."""
        end = call._end
        if self._calls.pop(end.id, None) is not None:
            self._outbox.put_nowait(Message(Kind.CANCEL, end.id))

    async def run(self) -> None:
        """Serve the stream until it breaks; every call that is open then fails with the reason."""
        error: NetworkError | ProtocolViolation = StreamReset("the network stopped")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                error = await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close(error)

    def close(self, error: NetworkError | ProtocolViolation) -> None:
        """Fail what is open and let go of the stream. Idempotent."""
        self.is_open = False
        self._outbox.fail(error)
        for end in self._calls.values():
            end.end(error)
        self._calls.clear()
        self._stream.reset()

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            await self._outbox.run()
        except NetworkError as error:
            self.close(error)
            scope.cancel()

    async def _read(self) -> NetworkError | ProtocolViolation:
        decoder = FrameDecoder(self._max_response + MAX_OVERHEAD)
        try:
            while data := await self._stream.receive(_CHUNK):
                for frame in decoder.feed(data):
                    self._on_message(decode(frame))
        except ProtocolViolation as violation:
            self.violation = violation
            return violation
        except NetworkError as error:
            return error
        return StreamReset("the peer closed the stream")

    def _on_message(self, message: Message) -> None:
        if message.call >= self._next or message.kind in (Kind.REQUEST, Kind.CANCEL):
            raise ProtocolViolation(f"a {message.kind.name} for a call that was never made")
        end = self._calls.get(message.call)
        if end is None:
            return  # still under way when we left the call
        match message.kind:
            case Kind.MESSAGE:
                end.on_message(message.body)
            case Kind.CREDIT:
                end.on_credit(message.number)
            case Kind.FINISH:
                del self._calls[message.call]
                end.end()
            case _:
                del self._calls[message.call]
                end.end(RemoteError(message.body.decode("utf-8", "replace") or "the peer did not say why"))
