"""One peer of a network in memory; see :mod:`owm.net._memory`."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, Self

import trio

from owm.identity import Identity, PeerId
from owm.net._admission import Admission
from owm.net._core_peer_record import sign_peer_record
from owm.net._dialer import Dialer
from owm.net._events import EventHub
from owm.net._figures import figures
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
from owm.net._limits import NetworkLimits
from owm.net._memory_bounds import MemoryBounds
from owm.net._memory_link import Nat, Timeline
from owm.net._memory_serving import MemoryServer
from owm.net._memory_stream import MemoryConnection, MemoryStream
from owm.net._penalties import Penalties
from owm.net._quota import PeerQuotas, Rate
from owm.net._racing import race
from owm.net._turns import take_turn
from owm.net.errors import (
    DialFailed,
    NetworkError,
    NotConnected,
    NotDialled,
    ProtocolNotSupported,
    StreamReset,
    TooManyStreams,
)

if TYPE_CHECKING:
    from owm.net._memory import MemoryHub

__all__ = ["MemoryNetwork"]

_HANDSHAKE_TRIPS: Final = 6  # one-way: TCP, protocol and muxer negotiation, Noise
_KEEP_ALIVE: Final = 30.0  # seconds without an answer until a connection is given up
_NAT_MAPPING: Final = 60.0  # seconds for which a cone NAT lets in whom its peer has talked to


class MemoryNetwork(Network):
    """A peer's access to a :class:`MemoryHub`; made by :meth:`MemoryHub.network`."""

    def __init__(self, hub: MemoryHub, peer: Identity | PeerId, address: str, nat: Nat, limits: NetworkLimits) -> None:
        self._identity = None if isinstance(peer, PeerId) else peer
        self._record: bytes | None = None
        self.peer_id = peer_id = peer if isinstance(peer, PeerId) else peer.peer_id
        self.nat = nat
        self.limits = limits
        self.penalties = Penalties()
        self._hub = hub
        self._addresses = (address,)
        self._server = MemoryServer()
        self._connections: dict[PeerId, list[MemoryConnection]] = {}
        self._dialling: dict[PeerId, trio.Event] = {}
        self._talked: dict[PeerId, float] = {}
        self._admission = Admission(limits, self.penalties)
        self.budget = self._admission.budget
        self._dialer = Dialer(limits, Random(peer_id))  # noqa: S311 - spreads retries
        self._quotas = PeerQuotas(Rate(limits.stream_rate, limits.stream_burst))
        self._dial_slots = trio.CapacityLimiter(limits.max_dials)
        self._events = EventHub()
        self._timeline = Timeline()
        self._bounds = MemoryBounds(
            self._admission, self._server, self._timeline, lambda: itertools.chain(*self._connections.values())
        )
        self._nursery: trio.Nursery | None = None
        self._dials = self._dials_failed = self._handshakes_failed = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Enter the hub until the block ends.

        Raises:
            NetworkError: the address is in use.
        """
        self._hub.enter(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._timeline.running = True
                nursery.start_soon(self._timeline.run)
                if self.limits.max_bytes_per_day:
                    nursery.start_soon(self._bounds.keep)
                try:
                    yield self
                finally:
                    for connections in list(self._connections.values()):
                        for connection in list(connections):
                            connection.drop("we are leaving")
                    nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._hub.leave(self)
            self._events.close()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    async def connect(self, peer: PeerId | None, addresses: Sequence[str]) -> PeerId:
        if self._nursery is None:
            raise NotDialled("the network is not running")
        while peer is not None:
            if self.is_connected(peer):
                await trio.lowlevel.checkpoint()
                return peer
            if peer not in self._dialling:
                break
            await self._dialling[peer].wait()  # one dial per peer at a time
        plan = self._dialer.plan(peer, addresses, now=trio.current_time())
        if plan.refusal is not None:
            raise NotDialled(plan.refusal, dict.fromkeys(addresses, plan.refusal), plan.retry_after)
        if peer is not None:
            self._dialling[peer] = trio.Event()
        try:
            async with self._dial_slots:
                reached, reasons = await race(plan, lambda address: self._dial(peer, address))
        finally:
            if peer is not None:
                self._dialling.pop(peer).set()
        now = trio.current_time()
        if reached is None:
            self._dialer.failed(plan.key, now)
            raise DialFailed(
                f"cannot reach {peer.short if peer else 'anybody'}: {'; '.join(reasons.values())}", reasons
            )
        return reached

    async def _dial(self, peer: PeerId | None, address: str) -> PeerId:
        """One attempt at one address; raises DialFailed."""
        self._dials += 1
        try:
            return await self._reach(peer, address)
        except DialFailed:
            self._dials_failed += 1
            raise

    async def _reach(self, peer: PeerId | None, address: str) -> PeerId:
        target = self._hub.find(address)
        if target is self:
            raise DialFailed("that is our own address")
        if target is None:
            await trio.sleep(2 * self._hub.link_between(self.peer_id, peer or self.peer_id).latency)
            raise DialFailed("connection refused")
        now = trio.current_time()
        self._talked[target.peer_id] = now
        there = not self._hub.is_blocked(self.peer_id, target.peer_id) and target.lets_in(self.peer_id, now)
        if not there or self._hub.is_blocked(target.peer_id, self.peer_id):
            if there:
                target.handshake_failed()
            await trio.sleep_forever()  # the planned timeout ends this
        scope = trio.CancelScope()
        if target._admission.begin_handshake(scope, self._addresses[0], now) is not None:
            raise DialFailed("the peer turned us away")
        if (other := target._admission.crowded_out()) is not None:
            assert isinstance(other, trio.CancelScope)
            other.cancel()
        try:
            with scope:
                await trio.sleep(_HANDSHAKE_TRIPS * self._hub.link_between(self.peer_id, target.peer_id).latency)
        finally:
            target._admission.end_handshake(scope)
        if scope.cancelled_caught:
            raise DialFailed("the peer turned us away")
        if peer is not None and target.peer_id != peer:
            target.handshake_failed()
            raise DialFailed(f"wrong peer id: {target.peer_id.short} answered")
        if self._hub.find(address) is not target:
            raise DialFailed("the peer left")
        if self._hub.is_blocked(self.peer_id, target.peer_id) or self._hub.is_blocked(target.peer_id, self.peer_id):
            await trio.sleep_forever()
        self._join(target, address)
        return target.peer_id

    def _join(self, target: MemoryNetwork, address: str) -> None:
        if self.is_connected(target.peer_id):
            return  # another address of the race was as fast
        now = trio.current_time()
        for network in (self, target):
            network._bounds.trim()  # connections that were too young to go when others came may be old enough now
        if refusal := self._admission.admit(target.peer_id, address, inbound=False, now=now):
            raise NotDialled(refusal)
        if refusal := target._admission.admit(self.peer_id, self._addresses[0], inbound=True, now=now):
            raise DialFailed("the peer turned us away")
        near, far = self._end(target.peer_id, address, False), target._end(self.peer_id, self._addresses[0], True)
        near.other, far.other = far, near
        near.wire = self._hub.wire(near, self._timeline, target._timeline)
        far.wire = self._hub.wire(far, target._timeline, self._timeline)
        far.round_trip = near.round_trip = 2 * self._hub.link_between(near.local, far.local).latency
        self._came_up(near)
        target._came_up(far)

    def lets_in(self, peer: PeerId, now: float) -> bool:
        """Whether our NAT passes on what ``peer`` sends unasked."""
        if self.nat is Nat.CONE:
            return now - self._talked.get(peer, float("-inf")) <= _NAT_MAPPING
        return self.nat is Nat.PUBLIC

    def handshake_failed(self) -> None:
        """Somebody dialled us and did not get through."""
        self._handshakes_failed += 1

    def partitions_changed(self) -> None:
        """A partition began or ended: note what stalls, let flow what may."""
        now = trio.current_time()
        for connection in list(itertools.chain(*self._connections.values())):
            stalled = self._hub.is_blocked(connection.local, connection.remote) or self._hub.is_blocked(
                connection.remote, connection.local
            )
            if not stalled:
                connection.stalled_at = None
                connection.wire.resume()
            elif connection.stalled_at is None:
                connection.stalled_at = now
                self._timeline.at(now + _KEEP_ALIVE, partial(self._give_up, connection))

    def _give_up(self, connection: MemoryConnection) -> None:
        since = connection.stalled_at
        if since is not None and trio.current_time() - since >= _KEEP_ALIVE:
            connection.drop("the keep-alive timed out")

    async def open_stream(self, peer: PeerId, protocol: str, *, bulk: bool = False) -> MemoryStream:
        connections = self._connections.get(peer)
        if not connections:
            raise NotConnected(f"there is no connection to {peer.short}")
        now = trio.current_time()
        if (bulk or not self._server.is_control(protocol)) and self._admission.is_spent(now):
            raise NetworkError("the day's bytes are used up: only what keeps us in the network goes on")
        wait = self._quotas.reserve(peer, protocol, 1, now)
        await take_turn(wait, partial(self._quotas.refund, peer, protocol, 1), peer)
        if peer not in self._connections:
            raise NotConnected(f"the connection to {peer.short} went away")
        connections = self._connections[peer]
        if len(connections[0].streams) >= self.limits.max_streams_per_peer:
            raise TooManyStreams(f"too many streams are open with {peer.short}")
        stream = connections[0].open(protocol, bulk)
        try:
            await stream.opened.wait()
        except trio.Cancelled:
            stream.reset()
            raise
        stream.raise_refusal()
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

    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        return self._events.subscribe(
            PeerConnected(peer, connections[0].inbound) for peer, connections in self._connections.items()
        )

    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._describe(peer, ends) for peer, ends in self._connections.items())

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self._connections)

    def connection(self, peer: PeerId) -> Connection | None:
        ends = self._connections.get(peer)
        return self._describe(peer, ends) if ends else None

    def _describe(self, peer: PeerId, ends: Sequence[MemoryConnection]) -> Connection:
        remote = self._hub.find(ends[0].address)
        return Connection(
            peer=peer,
            inbound=ends[0].inbound,
            address=ends[0].address,
            opened=ends[0].opened,
            streams=sum(len(end.streams) for end in ends),
            busy=any(not self._server.is_lasting(s.protocol) for end in ends for s in end.streams.values()),
            round_trip=ends[0].round_trip,
            score=self.penalties.score(peer, trio.current_time()),
            protected=self._admission.is_protected(peer),
            addresses=remote.addresses if remote is not None and remote.nat is Nat.PUBLIC else (),
            protocols=remote._server.protocols if remote is not None else (),
        )

    def peer_record(self, peer: PeerId) -> bytes | None:
        ends = self._connections.get(peer)
        remote = self._hub.find(ends[0].address) if ends else None
        return remote._own_record() if remote is not None else None

    def _own_record(self) -> bytes | None:
        if self._record is None and self._identity is not None and self.nat is Nat.PUBLIC:
            self._record = sign_peer_record(self._identity, 1, self._addresses)  # the address never changes
        return self._record

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self._connections

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        self._drop(peer, "closed by us")

    def protect(self, peer: PeerId, tag: str, protected: bool = True) -> None:
        self._admission.protect(peer, tag, protected)

    def penalise(self, peer: PeerId, penalty: Penalty, reason: str) -> None:
        standing = self.penalties.penalise(peer, penalty, reason, trio.current_time())
        if standing.disconnect:
            self._drop(peer, f"penalised: {reason}")

    def statistics(self) -> NetworkStatistics:
        return figures(
            self._admission,
            self.penalties,
            self._quotas,
            trio.current_time(),
            dials=(self._dials, self._dials_failed),
            handshakes_failed=self._handshakes_failed,
            streams=sum(len(end.streams) for ends in self._connections.values() for end in ends),
            passed=self._bounds.passed,
        )

    def _drop(self, peer: PeerId, reason: str) -> None:
        for connection in list(self._connections.get(peer, ())):
            connection.drop(reason)

    def _end(self, remote: PeerId, address: str, inbound: bool) -> MemoryConnection:
        end = MemoryConnection(
            self.peer_id, remote, address, inbound, self._accept, self._ended, self._bounds.count, self.limits.linger
        )
        end.observer = self._hub.observer
        return end

    def _came_up(self, connection: MemoryConnection) -> None:
        now = trio.current_time()
        peer = connection.remote
        ends = self._connections.setdefault(peer, [])
        ends.append(connection)
        self._admission.opened(connection, peer, connection.address, inbound=connection.inbound, now=now)
        if not connection.inbound:
            self._dialer.succeeded(peer, now)
        if len(ends) == 1:
            self._events.publish(PeerConnected(peer, connection.inbound))
        self._bounds.trim()

    def _ended(self, connection: MemoryConnection, reason: str) -> None:
        peer = connection.remote
        self._admission.closed(connection)
        ends = self._connections.get(peer, [])
        if connection in ends:
            ends.remove(connection)
        if not connection.inbound:
            wanted = reason == "closed by us"
            self._dialer.ended(peer, opened=connection.opened, now=trio.current_time(), wanted=wanted)
        if not ends and self._connections.pop(peer, None) is not None:
            self._events.publish(PeerDisconnected(peer, reason))

    def _accept(self, connection: MemoryConnection, stream: MemoryStream) -> Exception | None:
        if not self._server.speaks(stream.protocol):
            return ProtocolNotSupported(f"{self.peer_id.short} does not speak {stream.protocol}")
        group, now = self._admission.group(connection.address), trio.current_time()
        if not self._server.is_control(stream.protocol) and self._admission.is_spent(now):
            return StreamReset("the peer serves only what keeps it in the network for now")
        if not self._quotas.allow(stream.remote, stream.protocol, group, 1, now):
            # Not at once: it may end the connection that this stream has just come in by.
            self._timeline.at(now, partial(self.penalise, stream.remote, Penalty.HIGH_TOLERANCE, "too many streams"))
            return StreamReset("the peer takes streams of that protocol less often")
        if len(connection.streams) > self.limits.max_streams_per_peer:
            return StreamReset("the peer takes no more streams")
        assert self._nursery is not None
        return self._server.start(stream, self._nursery)
