"""What runs on streams: protocols are agreed on, handlers called, and what they raise kept from everybody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import structlog
import trio

from owm.identity import PeerId
from owm.net._core_multistream import Listening, MultistreamError, Proposing
from owm.net._faults import Faults
from owm.net._interface import Handler, Penalty, Stream
from owm.net._muxed_stream import MuxedStream
from owm.net._quota import QuotaTable, Rate
from owm.net.errors import NetworkError, ProtocolNotSupported, StreamReset

__all__ = ["PING", "StreamServer", "agree_on", "answer_pings"]

_log = structlog.get_logger(__name__)

PING: Final = "/ipfs/ping/1.0.0"
_POLITE: Final = 1.0
_PING_BYTES: Final = 32
_PING_IDLE: Final = 60.0
_PING_RATE: Final = Rate(per_second=10.0, burst=50)
_OTHERS_STREAMS: Final = 4  # of one protocol of the library and one peer


async def agree_on(stream: MuxedStream, protocol: str, timeout: float) -> None:
    """Ask the peer for a protocol on a new stream, within ``timeout`` seconds.

    Raises:
        ProtocolNotSupported: it does not speak it.
        StreamReset: it broke off, does not answer, or answers nonsense.
    """
    negotiation = Proposing([protocol])
    with trio.move_on_after(timeout):
        try:
            await stream.send(negotiation.begin())
            while negotiation.selected is None and not negotiation.refused:
                data = await stream.receive(4096)
                if not data:
                    raise StreamReset("the peer closed the stream without agreeing on a protocol")
                negotiation.receive(data)
        except MultistreamError as error:
            stream.reset()
            raise StreamReset(f"the peer cannot negotiate: {error}") from error
        except BaseException:
            stream.reset()
            raise
        if negotiation.refused:
            stream.reset()
            raise ProtocolNotSupported(f"{stream.remote.short} does not speak {protocol}")
        stream.push_back(negotiation.rest)
        stream.protocol = protocol
        return
    stream.reset()
    raise StreamReset(f"the peer did not agree on a protocol within {timeout:g} s")


class StreamServer:
    """Serves inbound streams.

    Args:
        others: the protocols that the library serves.
        serve_other: runs one of those.
        misbehaved: told when a peer breaks the rules.
        allowed: whether the peer has quota left for one more stream of that protocol.
        economising: whether control protocols alone are served for now.
        timeout: seconds in which an opener must say what it wants.
        faults: for tests.
    """

    def __init__(
        self,
        others: Collection[str],
        serve_other: Callable[[MuxedStream], Awaitable[None]],
        misbehaved: Callable[[PeerId, Penalty, str], None],
        allowed: Callable[[PeerId, str], bool],
        economising: Callable[[], bool],
        timeout: float,
        faults: Faults | None = None,
    ) -> None:
        self._others = others
        self._serve_other = serve_other
        self._misbehaved = misbehaved
        self._allowed = allowed
        self._economising = economising
        self._timeout = timeout
        self._faults = faults
        self._handlers: dict[str, tuple[Handler, int]] = {}
        self._control: set[str] = set(others)
        self._lasting: set[str] = set()
        self._serving: Counter[tuple[PeerId, str]] = Counter()

    def handle(self, protocol: str, handler: Handler, max_streams: int, *, control: bool, lasting: bool) -> None:
        self._handlers[protocol] = (handler, max_streams)
        (self._control.add if control else self._control.discard)(protocol)
        (self._lasting.add if lasting else self._lasting.discard)(protocol)

    def is_control(self, protocol: str) -> bool:
        """Whether a protocol keeps us in the network."""
        return protocol in self._control

    def is_lasting(self, protocol: str) -> bool:
        """Whether streams of a protocol stay open as long as their connection."""
        return protocol in self._lasting

    async def serve(self, stream: MuxedStream) -> None:
        """Agree on a protocol and run its handler; never raises but for cancellation."""
        try:
            if not await self._agree(stream):
                return
            most = self._handlers[stream.protocol][1] if stream.protocol in self._handlers else _OTHERS_STREAMS
            key = (stream.remote, stream.protocol)
            if self._serving[key] >= most:
                stream.reset()
                return
            if not self._allowed(*key):
                stream.reset()
                self._misbehaved(stream.remote, Penalty.HIGH_TOLERANCE, "too many streams")
                return
            self._serving[key] += 1
            try:
                await self._run(stream)
            finally:
                self._serving[key] -= 1
                if not self._serving[key]:
                    del self._serving[key]
        except StreamReset:
            stream.reset()
        except MultistreamError:
            stream.reset()
            self._misbehaved(stream.remote, Penalty.MID_TOLERANCE, "negotiation violated")
        except Exception:  # noqa: BLE001 - whatever goes wrong on one stream, the network goes on
            stream.reset()
            _log.exception("serving a stream failed", peer=stream.remote.short)

    async def _agree(self, stream: MuxedStream) -> bool:
        negotiation = Listening(lambda name: name in self._handlers or name in self._others)
        dribbled = False
        with trio.move_on_after(self._timeout) as scope:
            while negotiation.selected is None:
                data = await stream.receive(4096)
                if not data:
                    break
                dribbled = True
                out = negotiation.receive(data)
                if negotiation.selected is not None:
                    key = (stream.remote, negotiation.selected)
                    handler = self._handlers.get(negotiation.selected)
                    if handler is not None and self._serving[key] >= handler[1]:
                        break  # before we agree, so that the opener learns it at once
                    if negotiation.selected not in self._control and self._economising():
                        break
                if out:
                    await stream.send(out)
            else:
                stream.push_back(negotiation.rest)
                stream.protocol = negotiation.selected
                stream.faults = self._faults
                return True
        stream.reset()
        if scope.cancelled_caught and dribbled:
            # Silence may be the network's fault; a word that is never finished is not.
            self._misbehaved(stream.remote, Penalty.MID_TOLERANCE, "negotiation never finished")
        return False

    async def _run(self, stream: MuxedStream) -> None:
        handler, _ = self._handlers.get(stream.protocol, (self._serve_other, 0))
        try:
            await handler(stream)
            with trio.move_on_after(_POLITE):
                await stream.aclose()
        except Exception as error:  # noqa: BLE001 - whatever a handler does, the network goes on
            stream.reset()
            level = _log.debug if isinstance(error, NetworkError) else _log.exception
            level("a handler failed", protocol=stream.protocol, peer=stream.remote.short, error=repr(error))


def answer_pings(misbehaved: Callable[[PeerId, Penalty, str], None]) -> Handler:
    """The handler of libp2p's ping protocol: 32 bytes back for 32 bytes, as long as they come at a bearable rate."""
    quotas = QuotaTable(_PING_RATE)

    async def handler(stream: Stream) -> None:
        while True:
            beat = b""
            while len(beat) < _PING_BYTES:
                with trio.move_on_after(_PING_IDLE) as scope:
                    piece = await stream.receive(_PING_BYTES - len(beat))
                if scope.cancelled_caught or not piece:
                    return
                beat += piece
            if not quotas.take(stream.remote, 1, trio.current_time()):
                misbehaved(stream.remote, Penalty.MID_TOLERANCE, "ping flood")
                stream.reset()
                return
            with trio.fail_after(_PING_IDLE):
                await stream.send(beat)

    return handler
