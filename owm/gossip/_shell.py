"""What runs a :class:`GossipCore` on a network: streams, outboxes, timers, and validations in turns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.gossip._core import GossipCore, Verdict
from owm.gossip._core_state import Deliver, Effect, Exchange, Penalise, SendRpc, Validate
from owm.gossip._core_wire import Message, RpcDecoder
from owm.gossip._exchange import PeerExchange
from owm.gossip._outbox import Outbox
from owm.identity import PeerId
from owm.net import Network, PeerConnected, Penalty, Stream, group_of, is_local, pump_frames
from owm.net.errors import NetworkError, ProtocolNotSupported, ProtocolViolation

__all__ = ["PROTOCOLS", "GossipShell"]

PROTOCOLS: Final = ("/meshsub/1.2.0", "/meshsub/1.1.0")

_log = structlog.get_logger(__name__)

_OPEN_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 5.0
_PATIENCE: Final = 30.0  # seconds in which a peer must take something
_OUTBOX_BYTES: Final = 1 << 20
_NEVER: Final = float("inf")
_SLACK: Final = 0.002  # seconds by which a forward may be early, so that one turn serves several
_AT_ONCE: Final = 16  # validations before others get their turn
_ENOUGH: Final = 12  # peers that we talk to, above which a connection has to last until we talk on it too


class GossipShell:
    """Moves bytes and time between one core and the peers of ``network``.

    Args:
        network: running before we are.
        core: driven by nobody else but through :meth:`apply`.
        clock: its monotonic time drives the core.
        protocols: offered and tried in this order.
        judge: what a message is worth; called once for each.
        deliver: takes accepted messages with the peer that forwarded them.
        exchange: is handed the peers that a well-behaved peer recommends.
        trusted: whose recommendations are taken from the start: they score what others have to earn.
        lasting: seconds that a connection must last before we talk on it, where we talk to enough peers already.
    """

    def __init__(
        self,
        network: Network,
        core: GossipCore[PeerId],
        clock: Clock,
        protocols: Sequence[str],
        judge: Callable[[Message, PeerId], Verdict],
        deliver: Callable[[Message, PeerId], None],
        exchange: PeerExchange,
        trusted: Collection[PeerId] = (),
        lasting: float = 0.0,
    ) -> None:
        self._network = network
        self._core = core
        self._clock = clock
        self._protocols = tuple(protocols)
        self._judge = judge
        self._deliver = deliver
        self._exchange = exchange
        self._trusted = frozenset(trusted)
        self._lasting = lasting
        self._passing: dict[PeerId, float] = {}  # connected peers that we do not talk to yet, and since when
        self.outboxes: dict[PeerId, Outbox] = {}  #: one for each connected peer
        self._scopes: dict[PeerId, trio.CancelScope] = {}
        self._later: deque[Validate[PeerId]] = deque()
        self._has_later = trio.Event()
        self._forwards = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._dropped = 0
        self._decode = RpcDecoder().decode

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve and heartbeat until the block ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for protocol in self._protocols:
                self._network.handle(protocol, self._on_stream, max_streams=2, control=True, lasting=True)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._beat)
            nursery.start_soon(self._forward)
            nursery.start_soon(self._validate_later)
            nursery.start_soon(self._exchange.run, self.meet)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None
                for peer in list(self.outboxes):
                    self._left(peer)

    @property
    def dropped(self) -> int:
        """RPCs that were not sent because their peer was too slow."""
        return self._dropped + sum(outbox.dropped for outbox in self.outboxes.values())

    def apply(self, effects: list[Effect[PeerId]]) -> int:
        """Carry out what the core wants; returns how many peers messages were sent to or queued for."""
        sent = 0
        for effect in effects:
            if type(effect) is SendRpc:
                outbox = self.outboxes.get(effect.peer)
                if outbox is not None and outbox.put(effect.rpc, effect.priority) and effect.rpc.publish:
                    sent += 1
            elif type(effect) is Deliver:
                self._deliver(effect.message, effect.peer)
            elif type(effect) is Validate:
                self._later.append(effect)
            elif type(effect) is Penalise:
                self._network.penalise(effect.peer, Penalty.LOW_TOLERANCE, f"gossip: {effect.reason}")
            elif type(effect) is Exchange:
                self._exchange.take(effect)
        if self._core.next_forward < _NEVER:
            self._forwards.set()
        return sent

    def _validate_some(self, most: int) -> None:
        while self._later and most > 0:
            most -= 1
            effect = self._later.popleft()
            verdict = self._judge(effect.message, effect.peer)
            self.apply(self._core.validated(effect.message.id, verdict, self._clock.monotonic()))
        if self._later:
            self._has_later.set()

    # -- timers

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self._core.params.heartbeat)
            self._meet_lasting(self._clock.monotonic())
            self.apply(self._core.heartbeat(self._clock.monotonic()))

    async def _forward(self) -> None:
        """Send on what the core holds back for a moment. One that is due before the next turn waits for that."""
        while True:
            await self._forwards.wait()
            while (due := self._core.next_forward) < _NEVER:
                await trio.sleep(max(0.0, due - self._clock.monotonic()))
                self.apply(self._core.forward(self._clock.monotonic() + _SLACK))
            self._forwards = trio.Event()

    async def _validate_later(self) -> None:
        """What one frame brought beyond a few validations, in turns with everything else."""
        while True:
            await self._has_later.wait()
            self._validate_some(_AT_ONCE)
            if not self._later:
                self._has_later = trio.Event()
            await trio.lowlevel.checkpoint()

    # -- peers

    async def _watch(self) -> None:
        async for event in self._network.events():
            if not isinstance(event, PeerConnected):
                self._passing.pop(event.peer, None)
                self._left(event.peer)
            elif self._lasting and len(self.outboxes) >= _ENOUGH:
                self._passing[event.peer] = self._clock.monotonic()
            else:
                self.meet(event.peer)

    def _meet_lasting(self, now: float) -> None:
        """Most connections are here for a query or two, which is over sooner than gossip on them has begun."""
        for peer, since in list(self._passing.items()):
            if len(self.outboxes) >= _ENOUGH and now - since < self._lasting:
                return
            self.meet(peer)

    def meet(self, peer: PeerId) -> None:
        """Talk to a connected peer from now on; it then tells us what it subscribes to."""
        self._passing.pop(peer, None)
        if peer in self.outboxes or self._nursery is None:
            return
        connection = self._network.connection(peer)
        if connection is None:
            return
        outbox = self.outboxes[peer] = Outbox(_OUTBOX_BYTES)
        scope = self._scopes[peer] = trio.CancelScope()
        group = None if is_local(connection.address) else group_of(connection.address)
        now = self._clock.monotonic()
        self.apply(self._core.peer_up(peer, now, outbound=not connection.inbound, idontwant=False, group=group))
        if peer in self._trusted:
            score = self._core.params.score
            self._core.set_application_score(peer, score.exchange_threshold / (score.application_weight or 1.0), now)
        self._nursery.start_soon(self._send_to, peer, outbox, scope)

    def _left(self, peer: PeerId) -> None:
        outbox = self.outboxes.pop(peer, None)
        if outbox is not None:
            self._dropped += outbox.dropped
            self._scopes.pop(peer).cancel()
            self.apply(self._core.peer_down(peer, self._clock.monotonic()))

    async def _send_to(self, peer: PeerId, outbox: Outbox, scope: trio.CancelScope) -> None:
        """Own the outbound stream to one peer; a broken one is opened again, and what the peer must know is said."""
        with scope:
            while not scope.cancel_called:  # the peer may have left before we first ran
                told = False
                try:
                    stream = await self._open(peer)
                    told = True
                    await _drain(outbox, stream)
                except ProtocolNotSupported:
                    self._left(peer)  # no gossip with this one
                    return
                except NetworkError as error:
                    _log.debug("gossip to a peer broke", peer=peer.short, error=str(error))
                    if told and not scope.cancel_called:
                        outbox = self._start_again(peer, outbox)
                await trio.sleep(_RETRY_SECONDS)
                if not self._network.is_connected(peer):
                    self._left(peer)
                    return

    def _start_again(self, peer: PeerId, broken: Outbox) -> Outbox:
        """What was sent last may be lost; the peer's own stream may be as good as ever: nothing of it is forgotten."""
        self._dropped += broken.dropped
        outbox = self.outboxes[peer] = Outbox(_OUTBOX_BYTES)
        self.apply(self._core.stream_renewed(peer, self._clock.monotonic()))
        return outbox

    async def _open(self, peer: PeerId) -> Stream:
        for protocol in self._protocols:
            with trio.move_on_after(_OPEN_SECONDS):
                try:
                    stream = await self._network.open_stream(peer, protocol)
                except ProtocolNotSupported:
                    continue
                self._core.set_idontwant(peer, "1.2" in protocol)
                return stream
            raise NetworkError(f"{peer.short} did not negotiate in time")
        raise ProtocolNotSupported(f"{peer.short} does not speak gossip")

    async def _on_stream(self, stream: Stream) -> None:
        """Take a peer's RPCs. Silence is no fault here: the connection's keep-alive is the deadline."""
        peer = stream.remote
        self.meet(peer)

        def take(frame: bytes) -> None:
            self.apply(self._core.receive_rpc(peer, self._decode(frame), self._clock.monotonic()))
            self._validate_some(_AT_ONCE)

        try:
            await pump_frames(stream, self._core.params.max_rpc, take)
        except ProtocolViolation as violation:
            self.apply(self._core.broke_protocol(peer, str(violation), self._clock.monotonic()))
            stream.reset()


async def _drain(outbox: Outbox, stream: Stream) -> None:
    """Send what waits until the stream breaks. Nothing comes on it, but by its reset we know before the next loss.

    Raises:
        NetworkError: it broke; it is reset then.
    """
    failure: NetworkError | None = None
    async with trio.open_nursery() as nursery:

        async def notice() -> None:
            nonlocal failure
            try:
                while await stream.receive():
                    """Whatever it says, nobody asked for it."""
            except NetworkError as error:
                failure = error
                nursery.cancel_scope.cancel()

        nursery.start_soon(notice)
        try:
            await outbox.drain(stream, _PATIENCE)
        except NetworkError as error:
            failure = error
            nursery.cancel_scope.cancel()
        finally:
            stream.reset()
    if failure is not None:
        raise failure
