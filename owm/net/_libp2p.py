"""The real network: our transport under a py-libp2p host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock, SystemClock
from owm.identity import Identity, PeerId
from owm.net._admission import Admission
from owm.net._core_noise import HandshakeFailed
from owm.net._dialer import Dialer
from owm.net._events import EventHub
from owm.net._faults import Faults
from owm.net._interface import (
    Connection,
    Handler,
    Network,
    NetworkEvent,
    NetworkStatistics,
    PeerConnected,
    PeerDisconnected,
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
from owm.net._secure import Credentials, Secured, secure
from owm.net._serving import PING, StreamServer, agree_on, answer_pings
from owm.net._transport import Reach, dial_tcp, listen_tcp, parse_endpoint, remote_multiaddr, tune
from owm.net._upkeep import KeepAlive, look_after
from owm.net.errors import DialFailed, NetworkError, NotConnected, NotDialled, TooManyStreams

__all__ = ["Libp2pNetwork"]

_log = structlog.get_logger(__name__)

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
        self._credentials = Credentials.of(identity)
        self._admission = Admission(limits, self.penalties)
        self._dialer = Dialer(limits, random or Random(identity.peer_id))  # noqa: S311 - spreads retries
        self._quotas = PeerQuotas(Rate(limits.stream_rate, limits.stream_burst))
        self._events = EventHub()
        self._faults = faults
        self._reach = reach
        self._keep_alive = keep_alive
        self._library = LibraryHost(identity, lambda: self.addresses, limits.max_connections)
        self._server = StreamServer(
            self._library.protocols, self._library.serve, self.penalise, self._allowed, limits.handshake_timeout, faults
        )
        self._connections: dict[PeerId, list[MuxedConnection]] = {}
        self._told: dict[PeerId, bool] = {}  # who is connected by the events, and whether they dialled us
        self._dialling: dict[PeerId, trio.Event] = {}
        self._dials_free = trio.CapacityLimiter(limits.max_dials)
        self._nursery: trio.Nursery | None = None
        self._dials = self._dials_failed = self._handshakes_failed = 0
        self._bytes_in = self._bytes_out = 0  # of connections that are gone
        self.handle(PING, answer_pings(self.penalise), max_streams=_PING_STREAMS)

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
                    nursery.start_soon(serve_listener, listener, self._serve_inbound)
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
            self._events.close()
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
                reached, reasons = await race(plan, partial(self._dial, peer))
        finally:
            if peer is not None:
                self._dialling.pop(peer).set()
        if reached is not None:
            return reached
        if peer is not None and self.is_connected(peer):
            return peer  # it dialled us meanwhile
        self._dialer.failed(plan.key, self._clock.monotonic())
        raise DialFailed(f"cannot reach {peer.short if peer else 'anybody'}: {'; '.join(reasons.values())}", reasons)

    async def _dial(self, peer: PeerId | None, address: str) -> PeerId:
        """One attempt at one address; leaves nothing behind when it fails or is cancelled."""
        self._dials += 1
        try:
            endpoint = parse_endpoint(address)
            expected = peer if peer is not None else (endpoint.peer if endpoint else None)
            if endpoint is not None:
                if endpoint.peer not in (None, expected):
                    raise DialFailed("the address names another peer")
                stream: trio.abc.Stream = await dial_tcp(endpoint)
            elif self._reach is not None:
                stream = await self._reach(address)
            else:
                raise DialFailed("no way to reach that kind of address")
            try:
                return await self._authenticate(stream, expected, address)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        except DialFailed:
            self._dials_failed += 1
            raise

    async def _authenticate(self, stream: trio.abc.Stream, expected: PeerId | None, address: str) -> PeerId:
        """The handshake of a dial, up to the live connection; the caller closes the stream on failure."""
        try:
            with trio.move_on_after(self.limits.handshake_timeout) as scope:
                secured = await secure(stream, self._credentials, initiator=True, expected=expected)
        except HandshakeFailed as error:
            raise DialFailed(str(error)) from error
        except trio.BrokenResourceError as error:
            raise DialFailed("the connection broke during the handshake") from error
        if scope.cancelled_caught:
            raise DialFailed(f"no handshake within {self.limits.handshake_timeout:g} s")
        remote = secured.remote
        if any(not end.inbound for end in self._usable(remote)):
            await trio.aclose_forcefully(stream)
            return remote  # another address of the race was as fast
        refusal = self._admission.admit(remote, address, inbound=False, now=self._clock.monotonic())
        if refusal is not None:
            raise NotDialled(refusal)
        self._came_up(stream, secured, address, inbound=False)
        return remote

    async def _serve_inbound(self, stream: trio.SocketStream) -> None:
        """One stranger, from accepting to the handshake's end; whatever it does concerns nobody else."""
        try:
            address = remote_multiaddr(stream)
        except OSError:
            return await trio.aclose_forcefully(stream)
        if self._admission.begin_handshake(address) is not None:
            return await trio.aclose_forcefully(stream)
        try:
            tune(stream)
            with trio.fail_after(self.limits.handshake_timeout):
                secured = await secure(stream, self._credentials, initiator=False)
        except (HandshakeFailed, trio.BrokenResourceError, trio.TooSlowError) as error:
            self._handshakes_failed += 1
            _log.debug("a handshake failed", address=address, error=str(error) or type(error).__name__)
            return await trio.aclose_forcefully(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        finally:
            self._admission.end_handshake(address)
        for known in self._connections.get(secured.remote, ()):
            known.ping()  # it may have died without a word
        if self._admission.admit(secured.remote, address, inbound=True, now=self._clock.monotonic()) is not None:
            return await trio.aclose_forcefully(stream)
        self._came_up(stream, secured, address, inbound=True)

    def _came_up(self, stream: trio.abc.Stream, secured: Secured, address: str, *, inbound: bool) -> None:
        if self._nursery is None:
            raise DialFailed("the network is not running")
        now = self._clock.monotonic()
        peer = secured.remote
        most = self.limits.max_streams_per_peer
        connection = MuxedConnection(
            stream, secured, inbound=inbound, address=address, opened=now, max_streams=most, owner=self
        )
        ends = self._connections.setdefault(peer, [])
        # After a simultaneous dial both sides prefer the one that the smaller id dialled; the other runs dry. Of two
        # that were dialled from the same side the newer one: its maker has lost the older.
        ends.insert(0, connection)
        ends.sort(key=lambda end: end.inbound == (self.peer_id < peer))
        self._admission.opened(connection, peer, address, inbound=inbound, now=now)
        if not inbound:
            self._dialer.succeeded(peer, now)
        self._nursery.start_soon(connection.run)
        self._nursery.start_soon(self._library.attach, connection)
        connection.ping()
        self._tell(peer, "")
        self.trim()

    def going(self, connection: MuxedConnection, reason: str) -> None:
        """A connection takes no more streams; called by itself."""
        self._tell(connection.remote, reason)

    def _tell(self, peer: PeerId, reason: str) -> None:
        """Publish that a peer can be reached from now on, or no longer."""
        usable = self._usable(peer)
        if usable and peer not in self._told:
            self._told[peer] = usable[0].inbound
            self._events.publish(PeerConnected(peer, usable[0].inbound))
        elif not usable and peer in self._told:
            del self._told[peer]
            self._events.publish(PeerDisconnected(peer, reason))

    def _usable(self, peer: PeerId) -> list[MuxedConnection]:
        """The connections with a peer that take new streams, the preferred one first."""
        return [end for end in self._connections.get(peer, ()) if end.is_usable]

    def ended(self, connection: MuxedConnection) -> None:
        """A connection is gone; called by itself."""
        peer = connection.remote
        self.account(connection)
        self._bytes_in += connection.bytes_in
        self._bytes_out += connection.bytes_out
        self._admission.closed(connection)
        self._library.detach(connection)
        ends = self._connections.get(peer, [])
        if connection in ends:
            ends.remove(connection)
        if not connection.inbound:
            now = self._clock.monotonic()
            self._dialer.ended(peer, opened=connection.opened, now=now, wanted=connection.wanted or bool(ends))
        if not ends:
            self._connections.pop(peer, None)
        self._tell(peer, connection.reason)

    def live(self) -> Iterator[MuxedConnection]:
        """All connections, duplicates after a simultaneous dial included."""
        for ends in list(self._connections.values()):
            yield from list(ends)

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
        """Charge the bytes that went over a connection since last time."""
        if amount := connection.take_uncounted():
            self._admission.used(connection, amount, self._clock.monotonic())

    async def _close_all(self) -> None:
        with trio.move_on_after(2 * _CLOSING):
            async with trio.open_nursery() as nursery:
                for connection in self.live():
                    nursery.start_soon(connection.aclose, "we are leaving", _CLOSING)

    # Streams

    async def open_stream(self, peer: PeerId, protocol: str, *, bulk: bool = False) -> MuxedStream:
        if not self._usable(peer):
            raise NotConnected(f"there is no connection to {peer.short}")
        now = self._clock.monotonic()
        if bulk and self._admission.bytes_wait(now) > 0:
            raise NetworkError("the day's bytes are used up: no bulk transfers for now")
        if (wait := self._quotas.reserve(peer, protocol, 1, now)) > 0:
            await trio.sleep(wait)
        ends = self._usable(peer)
        if not ends:
            raise NotConnected(f"the connection to {peer.short} went away")
        if sum(len(end.streams) for end in self._connections[peer]) >= self.limits.max_streams_per_peer:
            raise TooManyStreams(f"too many streams are open with {peer.short}")
        stream = min(ends, key=lambda end: end.is_doubtful(now)).open_stream(bulk=bulk)
        await agree_on(stream, protocol, self.limits.handshake_timeout)
        stream.faults = self._faults
        return stream

    def handle(self, protocol: str, handler: Handler, *, max_streams: int = 8) -> None:
        self._server.handle(protocol, handler, max_streams)
        self._library.announce(protocol)

    def stream_opened(self, connection: MuxedConnection, stream: MuxedStream) -> None:
        """A peer opened a stream; called by its connection."""
        total = sum(len(end.streams) for end in self._connections.get(connection.remote, ()))
        if self._nursery is None or total > self.limits.max_streams_per_peer:
            stream.reset()
        else:
            self._nursery.start_soon(self._server.serve, stream)

    def _allowed(self, peer: PeerId, protocol: str) -> bool:
        """Whether a peer may open one more stream of a protocol now."""
        ends = self._connections.get(peer)
        group = self._admission.group(ends[0].address) if ends else None
        return self._quotas.allow(peer, protocol, group, 1, self._clock.monotonic())

    # What is seen from outside

    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        return self._events.subscribe(PeerConnected(peer, inbound) for peer, inbound in self._told.items())

    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._describe(peer, ends) for peer in self._connections if (ends := self._usable(peer)))

    def connection(self, peer: PeerId) -> Connection | None:
        ends = self._usable(peer)
        return self._describe(peer, ends) if ends else None

    def _describe(self, peer: PeerId, ends: Sequence[MuxedConnection]) -> Connection:
        addresses, protocols = self._library.identified(peer)
        return Connection(
            peer=peer,
            inbound=ends[0].inbound,
            address=ends[0].address,
            opened=ends[0].opened,
            streams=sum(len(end.streams) for end in ends),
            round_trip=ends[0].round_trip,
            score=self.penalties.score(peer, self._clock.monotonic()),
            protected=self._admission.is_protected(peer),
            addresses=addresses,
            protocols=protocols,
        )

    def peer_record(self, peer: PeerId) -> bytes | None:
        return self._library.peer_record(peer) if self.is_connected(peer) else None

    def is_connected(self, peer: PeerId) -> bool:
        return any(end.is_usable for end in self._connections.get(peer, ()))

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections.get(peer, ())):
                nursery.start_soon(connection.aclose, "closed by us")

    def protect(self, peer: PeerId, tag: str, protected: bool = True) -> None:
        self._admission.protect(peer, tag, protected)

    def penalise(self, peer: PeerId, penalty: Penalty, reason: str) -> None:
        standing = self.penalties.penalise(peer, penalty, reason, self._clock.monotonic())
        if standing.disconnect:
            for connection in list(self._connections.get(peer, ())):
                connection.kill(f"penalised: {reason}")

    def misbehaved(self, connection: MuxedConnection, penalty: Penalty, reason: str) -> None:
        """A peer broke the transport's rules; called by its connection."""
        self.penalise(connection.remote, penalty, reason)

    def statistics(self) -> NetworkStatistics:
        live = list(self.live())
        return NetworkStatistics(
            connections=len(self._admission),
            inbound=self._admission.inbound,
            dials=self._dials,
            dials_failed=self._dials_failed,
            handshakes_failed=self._handshakes_failed,
            refused=self._admission.refused,
            streams=sum(len(connection.streams) for connection in live),
            bytes_in=self._bytes_in + sum(connection.bytes_in for connection in live),
            bytes_out=self._bytes_out + sum(connection.bytes_out for connection in live),
            bytes_left=self._admission.bytes_left(self._clock.monotonic()),
            penalties=self.penalties.reasons,
        )
