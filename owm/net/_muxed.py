"""A live connection: one task reads, one writes, any number of streams share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from owm.identity import PeerId
from owm.net._core_noise import PacketDamaged
from owm.net._core_yamux import (
    MAX_WINDOW,
    DataReceived,
    Event,
    Finished,
    GoneAway,
    Opened,
    PingReceived,
    Pong,
    Refused,
    StreamIdsExhausted,
    StreamWasReset,
    Yamux,
    YamuxError,
)
from owm.net._interface import Penalty
from owm.net._muxed_stream import MuxedStream
from owm.net._ping import SHORTEST_INTERVAL, PingClock
from owm.net._quota import Quota, Rate
from owm.net._secure import Secured
from owm.net._wire import READ, Wire
from owm.net.errors import StreamReset

__all__ = ["ConnectionOwner", "MuxedConnection"]

_log = structlog.get_logger(__name__)

_ROOMY: Final = 256 * 1024  # unread bytes of a connection up to which nobody looks closer
_PINGS: Final = Rate(per_second=1 / SHORTEST_INTERVAL, burst=50)
_OPENS: Final = Rate(per_second=200.0, burst=1000)
_REFUSALS: Final = Rate(per_second=10.0, burst=100)
_SMOOTHING: Final = 0.25  # weight of a new round trip
_SLOWLY: Final = 1024  # bytes read at once where the day's are used up
_RESTING: Final = 60.0  # seconds after which it is asked anew whether bytes may pass
_DOUBT: Final = 1.0  # seconds without an answer to a ping after which another connection with the peer is preferred
_LAST_WORDS: Final = 0.1  # seconds in which a peer that broke the protocol may hear that we end the connection


class ConnectionOwner(Protocol):
    """What a connection tells the network."""

    def stream_opened(self, connection: MuxedConnection, stream: MuxedStream) -> None:
        """The peer opened a stream; its protocol is not negotiated yet."""

    def misbehaved(self, connection: MuxedConnection, penalty: Penalty, reason: str) -> None:
        """The peer broke the protocol; the connection ends by itself where it must."""

    def crowded(self, connection: MuxedConnection) -> None:
        """Much that the peer has sent is unread."""

    def going(self, connection: MuxedConnection, reason: str) -> None:
        """The connection takes no more streams; those that are open go on for now."""

    def ended(self, connection: MuxedConnection) -> None:
        """The connection is gone; ``connection.reason`` says why."""


class MuxedConnection:
    """One authenticated connection; runs in :meth:`run`, ends with it.

    Args:
        stream: the byte stream below; owned and closed by the connection.
        secured: the result of the handshake.
        inbound: whether the peer dialled us.
        address: the peer's multiaddr.
        opened: the owner's monotonic time.
        max_streams: streams the peer may have open at once.
        owner: who is told.
        spend: where bytes are budgeted: charges them and returns the seconds to wait before more may pass.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        secured: Secured,
        *,
        inbound: bool,
        address: str,
        opened: float,
        max_streams: int,
        owner: ConnectionOwner,
        spend: Callable[[int], float] | None = None,
    ) -> None:
        self.remote: PeerId = secured.remote
        self.inbound = inbound
        self.address = address
        self.opened = opened
        self.streams: dict[int, MuxedStream] = {}
        self.reason = "the peer closed the connection"
        self.closed = trio.Event()
        self.bytes_in = 0
        self.bytes_out = 0
        self.leaving = False  #: the peer said that it goes, or we did: no new streams
        self.leaving_since = 0.0  #: when the peer said so
        self.wanted = False  #: closed by ourselves, on purpose
        self.last_heard = trio.current_time()
        self.buffered = 0
        self.mux = Yamux(initiator=not inbound, max_inbound=max_streams)
        self._stream = stream
        self._wire = Wire(stream)
        self._noise = secured.session
        self._early = secured.rest
        self._owner = owner
        self._spend = spend
        self._work = trio.lowlevel.ParkingLot()
        self._idle = False  # the writer has nothing to do and waits to be woken
        self._unsent = b""  # sealed, and waiting for the socket
        self._flushed = trio.Event()
        self._scope = trio.CancelScope()
        self._pings = Quota(_PINGS)
        self._opens = Quota(_OPENS)
        self._refusals = Quota(_REFUSALS)
        self._ping = PingClock()
        self._draining = False
        self._frozen = False
        self._counted = 0

    def __repr__(self) -> str:
        return f"<MuxedConnection {'from' if self.inbound else 'to'} {self.remote.short}>"

    @property
    def round_trip(self) -> float | None:
        return self.mux.round_trip

    def take_uncounted(self) -> int:
        """Bytes in and out over streams since the last call."""
        total = self.mux.carried
        amount, self._counted = total - self._counted, total
        return amount

    async def run(self) -> None:
        """Read and write until the connection ends; never raises for what the peer or the network does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        except Exception:  # noqa: BLE001 - a bug that one peer has found must not take the others' connections with it
            self.reason = "an internal error"
            _log.exception("a connection failed", peer=self.remote.short)
        finally:
            self.closed.set()
            self._flushed.set()
            for stream in list(self.streams.values()):
                stream.connection_lost(self.reason)
            self.streams.clear()
            self._owner.ended(self)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    def open_stream(self, *, bulk: bool = False) -> MuxedStream:
        """A new stream without a protocol.

        Raises:
            StreamReset: the connection is ending.
        """
        if self.closed.is_set() or self.leaving:
            raise StreamReset("the connection is closing")
        try:
            stream_id = self.mux.open(bulk=bulk)
        except StreamIdsExhausted as error:
            self.kill(str(error))
            raise StreamReset(str(error)) from error
        stream = self.streams[stream_id] = MuxedStream(self, stream_id, bulk=bulk)
        return stream

    def ping(self) -> None:
        """Measure the round trip, and find out whether the peer is still there. One at a time."""
        if not self._ping.under_way and not self.closed.is_set():
            self.mux.ping(self._ping.begin(trio.current_time()))
            self.wake()

    @property
    def is_pinging(self) -> bool:
        """Whether an answer to a ping is awaited."""
        return self._ping.under_way

    @property
    def is_usable(self) -> bool:
        """Whether new streams can be opened on it."""
        return not (self.leaving or self.closed.is_set())

    def is_doubtful(self) -> bool:
        """Whether the peer has owed an answer to a ping for a noticeable time."""
        return self._ping.under_way and trio.current_time() - self._ping.began > _DOUBT

    def is_lost(self, now: float, timeout: float) -> bool:
        """Whether the peer has owed an answer for ``timeout`` seconds in which nothing else showed that it is there."""
        return self._ping.under_way and self._ping.silence(now, self.last_heard, self._wire.delivered()) > timeout

    def wake(self) -> None:
        """There is something to send; it goes out with whatever else is queued until the writer's turn."""
        if self._idle:
            self._idle = False
            self._work.unpark()

    def push(self) -> None:
        """There is something to send: what the socket takes goes out at once, the writer does the rest."""
        if not self._idle or self._frozen or self._scope.cancel_called:
            return
        if self._spend is not None and self._spend(0):
            self.wake()  # what goes out now must go slowly
            return
        while chunk := self.mux.take():
            sealed = self._noise.seal(chunk)
            self.bytes_out += len(sealed)
            if self._ping.queued:
                self._ping.taken(trio.current_time(), self.bytes_out)
            if self._spend is not None:
                self._spend(len(sealed))
            sent = self._wire.send_some(sealed)
            if sent < len(sealed):
                self._unsent = sealed[sent:]
                self.wake()
                return

    def kill(self, reason: str) -> None:
        """End at once; what was not sent yet is lost."""
        if not self.closed.is_set() and not self._scope.cancel_called:
            self.reason = reason
            self._scope.cancel()

    def freeze(self) -> None:
        """Say nothing and read nothing more, yet stay open: a fault on purpose."""
        self._frozen = True

    async def drain(self) -> None:
        """Wait until all that is queued has gone out."""
        self._flushed = trio.Event()
        self._draining = True
        self.wake()
        await self._flushed.wait()

    async def aclose(self, reason: str, timeout: float = 0.5) -> None:
        """Say good-bye, send what is queued as far as it goes within ``timeout`` seconds, and end."""
        if not self.closed.is_set():
            self.wanted = True
            if not self.leaving:
                self.leaving = True
                self.mux.go_away()
                self._owner.going(self, reason)
            self.wake()
            with trio.move_on_after(timeout):
                await self._flushed.wait()
            self.kill(reason)
        with trio.move_on_after(timeout):
            await self.closed.wait()

    async def _write(self) -> None:
        mux = self.mux
        try:
            while True:
                if self._frozen:
                    await trio.sleep_forever()
                sealed, self._unsent = self._unsent, b""
                fresh = 0  # bytes not charged yet
                if not sealed:
                    chunk = mux.take()
                    if chunk:
                        sealed = self._noise.seal(chunk)
                        fresh = len(sealed)
                        self.bytes_out += fresh
                        if self._ping.queued:
                            self._ping.taken(trio.current_time(), self.bytes_out)
                if mux.writable:
                    self._notify_writable()
                if sealed:
                    await self._wire.send_all(sealed)
                    if self._spend is not None and self._spend(fresh):
                        await self._rest(self._spend)
                    continue
                if self.wanted or self._draining:
                    self._flushed.set()
                self._idle = True
                await self._work.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError, PacketDamaged):
            self.kill("the connection broke")

    async def _rest(self, spend: Callable[[int], float]) -> None:
        """Let nothing pass for as long as the day's bytes demand, which is not the peer's fault."""
        while pause := min(spend(0), _RESTING):
            self.last_heard = trio.current_time() + pause
            await trio.sleep(pause)

    async def _read(self) -> None:
        try:
            if self._early:
                self._take(self._early)
            most = READ
            while True:
                data = await self._wire.receive(most)
                if self._frozen:
                    await trio.sleep_forever()
                if not data:
                    return
                self.bytes_in += len(data)
                if self._spend is not None:
                    most = READ
                    if self._spend(len(data)):
                        most = _SLOWLY
                        await self._rest(self._spend)
                plain = self._noise.open(data)
                if plain:
                    self._take(plain)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.reason = "the connection broke"
        except (YamuxError, PacketDamaged) as error:
            self.reason = f"protocol violation: {error}"
            self._owner.misbehaved(self, Penalty.LOW_TOLERANCE, "transport protocol violation")
            self.leaving = True
            self.mux.go_away(1)
            with trio.move_on_after(_LAST_WORDS):
                await self.drain()  # by the writer: nobody else may write to the socket

    def _take(self, plain: bytes) -> None:
        now = self.last_heard = trio.current_time()
        for event in self.mux.receive(plain):
            if type(event) is DataReceived:
                self._on_data(event.stream_id, event.data)
            else:
                self._on_event(event, now)
        if self.mux.writable:
            self._notify_writable()
        if self.mux.has_output:
            self.wake()

    def _on_data(self, stream_id: int, data: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        self.buffered += len(data)
        stream.on_data(data)
        if self.buffered > _ROOMY:
            self.mux.spacious = self.buffered <= MAX_WINDOW
            self._owner.crowded(self)
        elif not self.mux.spacious:
            self.mux.spacious = True

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Opened(stream_id):
                if not self._opens.take(1, now):
                    raise YamuxError("streams are opened too fast")
                stream = self.streams[stream_id] = MuxedStream(self, stream_id)
                if self.leaving:
                    stream.reset()
                else:
                    self._owner.stream_opened(self, stream)
            case Refused():
                self._owner.misbehaved(self, Penalty.HIGH_TOLERANCE, "too many streams")
                if not self._refusals.take(1, now):
                    raise YamuxError("streams are opened without end")
            case Finished(stream_id):
                if known := self.streams.get(stream_id):
                    known.on_finished()
            case StreamWasReset(stream_id):
                if known := self.streams.get(stream_id):
                    known.on_reset()
            case PingReceived():
                if not self._pings.take(1, now):
                    self._owner.misbehaved(self, Penalty.MID_TOLERANCE, "ping flood")
                    raise YamuxError("pings without end")
            case Pong(value):
                if (measured := self._ping.answered(value, now)) is not None:
                    before = self.mux.round_trip
                    self.mux.round_trip = measured if before is None else before + _SMOOTHING * (measured - before)
            case GoneAway(code):
                if not self.leaving:
                    self.leaving, self.leaving_since = True, now
                    self._owner.going(self, "the peer is leaving")
                if code:
                    _log.debug("a peer ends the connection", peer=self.remote.short, code=code)

    def _notify_writable(self) -> None:
        for stream_id in self.mux.writable:
            stream = self.streams.get(stream_id)
            if stream is not None:
                stream.on_writable()
        self.mux.writable.clear()
