"""The real network: our transport under a py-libp2p host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final, Self

import trio

from owm.clock import Clock, SystemClock
from owm.identity import Identity, PeerId
from owm.net._admission import Admission
from owm.net._dialer import Dialer
from owm.net._entrance import Entrance
from owm.net._faults import Faults
from owm.net._figures import figures
from owm.net._interface import (
    Connection,
    Handler,
    Network,
    NetworkEvent,
    NetworkStatistics,
    Penalty,
)
from owm.net._library import LibraryHost
from owm.net._limits import NetworkLimits
from owm.net._listening import AddressBook, serve_listener
from owm.net._muxed import MuxedConnection
from owm.net._muxed_stream import MuxedStream
from owm.net._penalties import Penalties
from owm.net._quota import PeerQuotas, Rate
from owm.net._racing import race
from owm.net._roster import Roster
from owm.net._secure import Credentials, Secured
from owm.net._serving import PING, StreamServer, agree_on, answer_pings
from owm.net._transport import Reach, listen_tcp
from owm.net._turns import take_turn
from owm.net._upkeep import KeepAlive, look_after
from owm.net.errors import DialFailed, NetworkError, NotConnected, NotDialled, TooManyStreams

__all__ = ["Libp2pNetwork"]

_PING_STREAMS: Final = 2
_CLOSING: Final = 0.5  # seconds for all connections together


class Libp2pNetwork(Network):
    """A peer's access to the others over TCP, Noise and Yamux.

    Args:
        identity: who we are.
        listen: multiaddrs to listen on; port 0 takes a free one, no address at all means that we only dial.
        announce: what to tell others instead of the addresses that we listen on.
        limits: the budget of connections, streams, bytes and time.
        clock: for scores, back-off and what is shown to users.
        random: spreads retries.
        faults: for tests: what goes wrong on purpose.
        reach: opens byte streams to addresses that are not plain TCP (onion services, relays).
        keep_alive: when a silent connection is given up.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        announce: Sequence[str] | None = None,
        limits: NetworkLimits = NetworkLimits(),  # noqa: B008 - frozen
        clock: Clock | None = None,
        random: Random | None = None,
        faults: Faults | None = None,
        reach: Reach | None = None,
        keep_alive: KeepAlive = KeepAlive(),  # noqa: B008 - frozen
    ) -> None:
        self.peer_id = identity.peer_id
        self.limits = limits
        self.penalties = Penalties()
        self._listen = tuple(listen)
        self._book = AddressBook(announce)
        self._clock = clock or SystemClock()
        self._admission = Admission(limits, self.penalties)
        self.budget = self._admission.budget
        self._dialer = Dialer(limits, random or Random(identity.peer_id))  # noqa: S311 - spreads retries
        self._quotas = PeerQuotas(Rate(limits.stream_rate, limits.stream_burst))
        self._faults = faults
        self._keep_alive = keep_alive
        self._library = LibraryHost(identity, lambda: self.addresses, limits.max_connections)
        self._server = StreamServer(
            self._library.protocols,
            self._library.serve,
            self.penalise,
            self._allowed,
            lambda: self._admission.is_spent(self._clock.monotonic()),
            limits.handshake_timeout,
            faults,
        )
        self._roster = Roster(self.peer_id)
        self._entrance = Entrance(
            Credentials.of(identity), limits, self._admission, self._roster, reach, self._clock, self._came_up
        )
        self._dialling: dict[PeerId, trio.Event] = {}
        self._dials_free = trio.CapacityLimiter(limits.max_dials)
        self._nursery: trio.Nursery | None = None
        self._bytes_in = self._bytes_out = 0  # of connections that are gone
        self.handle(PING, answer_pings(self.penalise), max_streams=_PING_STREAMS, control=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen and serve until the block ends.

        Raises:
            NetworkError: an address cannot be listened on.
        """
        listeners = await listen_tcp(self._listen)
        self._book.listening(listeners)
        failure: Exception | None = None
        try:
            async with self._library.running(), trio.open_nursery() as nursery:
                self._nursery = nursery
                for listener in listeners:
                    nursery.start_soon(serve_listener, listener, self._entrance.serve)
                nursery.start_soon(look_after, self, self._keep_alive)
                try:
                    yield self
                except Exception as error:  # noqa: BLE001 - raised below, not wrapped in a group per nursery
                    failure = error
                finally:
                    with trio.CancelScope(shield=True):
                        for listener in listeners:
                            await listener.aclose()
                        await self._close_all()
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            for listener in listeners:
                listener.socket.close()
            self._roster.close()
        if failure is not None:
            raise failure

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._book.addresses

    # Dialling

    async def connect(self, peer: PeerId | None, addresses: Sequence[str]) -> PeerId:
        if self._nursery is None:
            raise NotDialled("the network is not running")
        if peer == self.peer_id:
            raise DialFailed("that is our own identity")
        while peer is not None:
            if self.is_connected(peer):
                await trio.lowlevel.checkpoint()
                return peer
            if peer not in self._dialling:
                break
            await self._dialling[peer].wait()  # one dial per peer at a time
        now = self._clock.monotonic()
        if peer is not None and self.penalties.is_banned(peer, now):
            raise DialFailed("that peer is banned", dict.fromkeys(addresses, "banned"))
        plan = self._dialer.plan(peer, addresses, now=now)
        if plan.refusal is not None:
            raise NotDialled(plan.refusal, dict.fromkeys(addresses, plan.refusal), plan.retry_after)
        if peer is not None:
            self._dialling[peer] = trio.Event()
        try:
            async with self._dials_free:
                reached, reasons = await race(plan, partial(self._entrance.dial, peer))
        finally:
            if peer is not None:
                self._dialling.pop(peer).set()
        if reached is not None:
            return reached
        if peer is not None and self.is_connected(peer):
            return peer  # it dialled us meanwhile
        self._dialer.failed(plan.key, self._clock.monotonic())
        raise DialFailed(f"cannot reach {peer.short if peer else 'anybody'}: {'; '.join(reasons.values())}", reasons)

    def _came_up(self, stream: trio.abc.Stream, secured: Secured, address: str, where: str, *, inbound: bool) -> None:
        if self._nursery is None:
            raise DialFailed("the network is not running")
        now = self._clock.monotonic()
        peer = secured.remote
        connection = MuxedConnection(
            stream,
            secured,
            inbound=inbound,
            address=address,
            opened=now,
            max_streams=self.limits.max_streams_per_peer,
            owner=self,
            spend=None if self._admission.budget is None else self._spend,
        )
        self._admission.opened(connection, peer, where, inbound=inbound, now=now)
        if not inbound:
            self._dialer.succeeded(peer, now)
        self._nursery.start_soon(connection.run)
        self._nursery.start_soon(self._library.attach, connection)
        connection.ping()
        self._roster.add(connection)
        self.trim()

    def crowded(self, connection: MuxedConnection) -> None:
        """Much of what came is unread: bound it. No blame: the peer kept inside the windows that it was granted."""
        worst = connection
        if connection.buffered <= self.limits.max_unread_per_peer:
            if sum(end.buffered for end in self.live()) <= self.limits.max_unread:
                return
            worst = max(self.live(), key=lambda end: end.buffered)
        if worst.streams:
            max(worst.streams.values(), key=lambda stream: stream.unread).reset()

    def going(self, connection: MuxedConnection, reason: str) -> None:
        """A connection takes no more streams; called by itself."""
        self._roster.tell(connection.remote, reason)

    def ended(self, connection: MuxedConnection) -> None:
        """A connection is gone; called by itself."""
        peer = connection.remote
        self._bytes_in += connection.bytes_in
        self._bytes_out += connection.bytes_out
        self._admission.closed(connection)
        self._library.detach(connection)
        self._roster.remove(connection)
        if not connection.inbound:
            wanted = connection.wanted or bool(self._roster.all(peer))
            self._dialer.ended(peer, opened=connection.opened, now=self._clock.monotonic(), wanted=wanted)

    def live(self) -> Iterator[MuxedConnection]:
        """All connections, duplicates after a simultaneous dial included."""
        return self._roster.live()

    def trim(self) -> None:
        """Close what is above the high-water mark."""
        for extra in self._admission.to_trim(self._clock.monotonic()):
            assert isinstance(extra, MuxedConnection)
            self.close_soon(extra, "trimmed: too many connections")

    def close_soon(self, connection: MuxedConnection, reason: str) -> None:
        """Close politely in the background."""
        if self._nursery is not None and not connection.wanted:
            self._nursery.start_soon(connection.aclose, reason)

    def account(self, connection: MuxedConnection) -> None:
        """Note whether a connection was used since last time."""
        if connection.take_uncounted():
            self._admission.used(connection, self._clock.monotonic())

    def _spend(self, amount: int) -> float:
        """Bytes pass: charge them to the day; returns the seconds to wait before more may follow."""
        budget, now = self._admission.budget, self._clock.monotonic()
        assert budget is not None
        before = budget.is_spent(now)
        budget.charge(amount, now)
        if not before and budget.is_spent(now):
            self.economise()
        return budget.wait(now)

    def economise(self) -> None:
        """Stop what is not needed to stay in the network when the day's bytes are used up."""
        if self._admission.is_spent(self._clock.monotonic()):
            for connection in self.live():
                for stream in list(connection.streams.values()):
                    if stream.protocol and (stream.bulk or not self._server.is_control(stream.protocol)):
                        stream.reset()

    async def _close_all(self) -> None:
        with trio.move_on_after(2 * _CLOSING):
            async with trio.open_nursery() as nursery:
                for connection in self.live():
                    nursery.start_soon(connection.aclose, "we are leaving", _CLOSING)

    # Streams

    async def open_stream(self, peer: PeerId, protocol: str, *, bulk: bool = False) -> MuxedStream:
        if peer not in self._roster:
            raise NotConnected(f"there is no connection to {peer.short}")
        now = self._clock.monotonic()
        if (bulk or not self._server.is_control(protocol)) and self._admission.is_spent(now):
            raise NetworkError("the day's bytes are used up: only what keeps us in the network goes on")
        if (wait := self._quotas.reserve(peer, protocol, 1, now)) > 0:
            await take_turn(wait, partial(self._quotas.refund, peer, protocol, 1), peer)
        ends = self._roster.usable(peer)
        if not ends:
            raise NotConnected(f"the connection to {peer.short} went away")
        if sum(len(end.streams) for end in self._roster.all(peer)) >= self.limits.max_streams_per_peer:
            raise TooManyStreams(f"too many streams are open with {peer.short}")
        stream = min(ends, key=MuxedConnection.is_doubtful).open_stream(bulk=bulk)
        await agree_on(stream, protocol, self.limits.handshake_timeout)
        stream.faults = self._faults
        return stream

    def handle(
        self,
        protocol: str,
        handler: Handler,
        *,
        max_streams: int = 8,
        control: bool = False,
        lasting: bool = False,
        rate: Rate | None = None,
    ) -> None:
        if rate is not None:
            self._quotas.set_rate(protocol, rate)
        self._server.handle(protocol, handler, max_streams, control=control, lasting=lasting)
        self._library.announce(protocol)

    def stream_opened(self, connection: MuxedConnection, stream: MuxedStream) -> None:
        """A peer opened a stream; called by its connection."""
        total = sum(len(end.streams) for end in self._roster.all(connection.remote))
        if self._nursery is None or total > self.limits.max_streams_per_peer:
            stream.reset()
        else:
            self._nursery.start_soon(self._server.serve, stream)

    def _allowed(self, peer: PeerId, protocol: str) -> bool:
        """Whether a peer may open one more stream of a protocol now."""
        ends = self._roster.all(peer)
        group = self._admission.group(ends[0].address) if ends else None
        return self._quotas.allow(peer, protocol, group, 1, self._clock.monotonic())

    # What is seen from outside

    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        return self._roster.subscribe()

    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._describe(peer, self._roster.usable(peer)) for peer in self._roster)

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self._roster)

    def connection(self, peer: PeerId) -> Connection | None:
        ends = self._roster.usable(peer)
        return self._describe(peer, ends) if ends else None

    def _describe(self, peer: PeerId, ends: Sequence[MuxedConnection]) -> Connection:
        addresses, protocols = self._library.identified(peer)
        return Connection(
            peer=peer,
            inbound=ends[0].inbound,
            address=ends[0].address,
            opened=ends[0].opened,
            streams=sum(len(end.streams) for end in ends),
            busy=any(not self._server.is_lasting(s.protocol) for end in ends for s in end.streams.values()),
            round_trip=ends[0].round_trip,
            score=self.penalties.score(peer, self._clock.monotonic()),
            protected=self._admission.is_protected(peer),
            addresses=addresses,
            protocols=protocols,
        )

    def peer_record(self, peer: PeerId) -> bytes | None:
        return self._library.peer_record(peer) if self.is_connected(peer) else None

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self._roster

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for connection in self._roster.all(peer):
                nursery.start_soon(connection.aclose, "closed by us")

    def protect(self, peer: PeerId, tag: str, protected: bool = True) -> None:
        self._admission.protect(peer, tag, protected)

    def penalise(self, peer: PeerId, penalty: Penalty, reason: str) -> None:
        standing = self.penalties.penalise(peer, penalty, reason, self._clock.monotonic())
        if standing.disconnect:
            for connection in self._roster.all(peer):
                connection.kill(f"penalised: {reason}")

    def misbehaved(self, connection: MuxedConnection, penalty: Penalty, reason: str) -> None:
        """A peer broke the transport's rules; called by its connection."""
        self.penalise(connection.remote, penalty, reason)

    def statistics(self) -> NetworkStatistics:
        live = list(self.live())
        return figures(
            self._admission,
            self.penalties,
            self._quotas,
            self._clock.monotonic(),
            dials=(self._entrance.dials, self._entrance.dials_failed),
            handshakes_failed=self._entrance.handshakes_failed,
            streams=sum(len(connection.streams) for connection in live),
            passed=(
                self._bytes_in + sum(connection.bytes_in for connection in live),
                self._bytes_out + sum(connection.bytes_out for connection in live),
            ),
        )
