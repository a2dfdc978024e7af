"""Gossip of signed records: topics, who reads them, what is allowed on them, and what newcomers fetch first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Container, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.gossip._catch_up import CatchUp
from owm.gossip._core import GossipCore, Verdict
from owm.gossip._core_params import GossipParams
from owm.gossip._core_wire import Message
from owm.gossip._exchange import PeerExchange
from owm.gossip._identifiers import record_message_id
from owm.gossip._interface import Gossip, GossipStatistics, Received, Validation, Validator
from owm.gossip._shell import PROTOCOLS, GossipShell
from owm.gossip._sync import SyncService
from owm.identity import PeerId
from owm.net import Network
from owm.net.errors import ProtocolViolation
from owm.records import SignedRecord, open_record
from owm.records.errors import FromTheFuture, RecordError, StaleRecord

__all__ = ["PROTOCOLS", "GossipService"]

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 16  # fetched records before others get their turn
_BAD_AT_MOST: Final = 3  # records of one peer that are not what was asked for, before it is not listened to
_VERDICTS: Final = {
    Validation.ACCEPT: Verdict.ACCEPT,
    Validation.IGNORE: Verdict.IGNORE,
    Validation.REJECT: Verdict.REJECT,
}


class _Subscription:
    """A topic of ours: who reads it, what is allowed on it, what we hold of it."""

    def __init__(self) -> None:
        self.channels: list[tuple[trio.MemorySendChannel[Received], trio.MemoryReceiveChannel[Received]]] = []
        self.validators: list[Validator] = []
        self.relaying = False


class GossipService(Gossip):
    """Gossip of signed records with the peers of ``network``.

    Args:
        network: running before we are.
        network_id: what records must be signed for.
        clock: wall time judges the age of records, monotonic time drives the core.
        random: the source of all chance.
        params: of the core; on devnets and onion peers with a colocation weight of 0.
        protocols: offered and tried in this order; the first is taken to have IDONTWANT.
        buffer: messages that wait for a subscriber; the oldest are lost beyond it.
        first_fetch: whether a new subscription fetches the current set from two peers.
        compare_every: seconds between two comparisons of a grow-only set with a neighbour, on average.
        trusted: peers, such as those that the operator named, whose recommendations are taken from the start; others
            have to earn it.
        lasting: seconds that a connection must last before we talk on it, where we talk to a dozen peers already and
            nobody calls :meth:`meet`.
    """

    def __init__(
        self,
        network: Network,
        *,
        network_id: str,
        clock: Clock,
        random: Random,
        params: GossipParams = GossipParams(),  # noqa: B008 - frozen
        protocols: Sequence[str] = PROTOCOLS,
        buffer: int = 1024,
        first_fetch: bool = True,
        compare_every: float = 60.0,
        trusted: Collection[PeerId] = (),
        lasting: float = 0.0,
    ) -> None:
        self._network = network
        self._network_id = network_id
        self._clock = clock
        self._params = params
        self._buffer = buffer
        self._first_fetch = first_fetch
        self._message_id = record_message_id(network_id)
        self.core: GossipCore[PeerId] = GossipCore(
            network.peer_id, params, random, self._message_id, network.peer_record
        )
        self.sync = SyncService(network, network_id=network_id, take=self._take_given)
        self._topics: dict[str, _Subscription] = {}
        self._catch_up = CatchUp(self.core, self.sync, self._topics, self._admit, self._blame, random, compare_every)
        self._shell = GossipShell(
            network,
            self.core,
            clock,
            protocols,
            self._judge_message,
            self._deliver,
            PeerExchange(network, random),
            trusted,
            lasting,
        )
        self._judged: SignedRecord | None = None  # between validation and delivery, which follows at once
        self._nursery: trio.Nursery | None = None
        self.lost = 0  #: messages that a subscriber was too slow for
        self.opened = 0  #: records opened, which is one signature check each

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve and heartbeat until the block ends; subscriptions then end too."""
        async with self.sync.running(), trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                async with self._shell.running():
                    nursery.start_soon(self._catch_up.keep_comparing)
                    for topic in self._topics if self._first_fetch else ():
                        nursery.start_soon(self._catch_up.fetch_first, topic)
                    yield self
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None
                for topic in list(self._topics):
                    self._end(topic)

    # -- the interface

    def subscribe(self, topic: str, validator: Validator | None = None) -> trio.MemoryReceiveChannel[Received]:
        subscription = self._join(topic, validator)
        send, receive = trio.open_memory_channel[Received](self._buffer)
        subscription.channels.append((send, receive))
        return receive.clone()

    def relay(self, topic: str, validator: Validator | None = None) -> None:
        """Take part in ``topic`` for the others' sake: validate and forward, deliver to nobody."""
        self._join(topic, validator).relaying = True

    def unsubscribe(self, topic: str) -> None:
        if topic in self._topics:
            self._end(topic)
            self._shell.apply(self.core.unsubscribe(topic, self._clock.monotonic()))

    def meet(self, peer: PeerId) -> None:
        """Talk to a connected peer at once, because the connection was made for gossip."""
        self._shell.meet(peer)

    async def publish(self, topic: str, record: SignedRecord) -> int:
        await trio.lowlevel.checkpoint()
        effects = self.core.publish(Message(topic, record.envelope), self._clock.monotonic())
        return self._shell.apply(effects)

    def register_current(
        self, topic: str, current: Callable[[], Iterable[SignedRecord]], *, grow_only: bool = False
    ) -> None:
        """Say where the topic's current records are, for peers that have just subscribed and want them all.

        A ``grow_only`` set is also compared with a neighbour's now and then while we are subscribed, both ways: what
        one lacks it gets from the other, and it comes out of the subscription as if it had been gossiped.
        """
        self.sync.register(topic, current, grow_only=grow_only)

    def statistics(self) -> GossipStatistics:
        counters, held = self.core.counters, self.core.held()
        return GossipStatistics(
            topics=len(self.core.subscriptions()),
            peers=len(self.core.peers()),
            mesh_links=held["mesh_links"],
            published=counters.published,
            delivered=counters.delivered,
            duplicates=counters.duplicates,
            rejected=counters.rejected,
            ignored=counters.ignored,
        )

    @property
    def dropped(self) -> int:
        """RPCs that were not sent because their peer was too slow."""
        return self._shell.dropped

    # -- subscriptions

    def _join(self, topic: str, validator: Validator | None) -> _Subscription:
        subscription = self._topics.get(topic)
        if subscription is None:
            subscription = self._topics[topic] = _Subscription()
            self._shell.apply(self.core.subscribe(topic, self._clock.monotonic()))
            if self._nursery is not None and self._first_fetch:
                self._nursery.start_soon(self._catch_up.fetch_first, topic)
        if validator is not None:
            subscription.validators.append(validator)
        return subscription

    def _end(self, topic: str) -> None:
        for send, receive in self._topics.pop(topic).channels:
            send.close()
            receive.close()

    def _hand_out(self, topic: str, received: Received) -> None:
        subscription = self._topics.get(topic)
        if subscription is None:
            return
        for pair in list(subscription.channels):
            send, receive = pair
            if send.statistics().open_receive_channels < 2:
                subscription.channels.remove(pair)  # the reader closed its end
                send.close()
                receive.close()
                continue
            try:
                send.send_nowait(received)
            except trio.WouldBlock:
                receive.receive_nowait()
                self.lost += 1
                send.send_nowait(received)

    # -- what comes in

    def _judge_message(self, message: Message, peer: PeerId) -> Verdict:
        verdict, self._judged = self._judge(message.topic, message.data, peer)
        return verdict

    def _deliver(self, message: Message, peer: PeerId) -> None:
        assert self._judged is not None
        self._hand_out(message.topic, Received(self._judged, peer))

    def _judge(self, topic: str, data: bytes, peer: PeerId) -> tuple[Verdict, SignedRecord | None]:
        if topic not in self._topics:
            return Verdict.IGNORE, None
        try:
            record = self._open(data)
        except RecordError:
            return Verdict.REJECT, None
        return self._validate(topic, record, peer)

    def _open(self, data: bytes) -> SignedRecord:
        self.opened += 1
        return open_record(data, self._network_id, self._clock.time())

    def _validate(self, topic: str, record: SignedRecord, peer: PeerId) -> tuple[Verdict, SignedRecord | None]:
        worst = Verdict.ACCEPT
        for validator in self._topics[topic].validators:
            try:
                verdict = _VERDICTS[validator(record, peer)]
            except Exception:  # noqa: BLE001 - a validator's defect must not end the peer
                _log.exception("a validator failed", topic=topic)
                verdict = Verdict.IGNORE
            if verdict is Verdict.REJECT:
                return verdict, None
            worst = verdict if verdict is not Verdict.ACCEPT else worst
        return worst, record

    # -- what was fetched, and what others give to a grow-only set

    async def _admit(self, topic: str, envelopes: Collection[bytes], wanted: Container[bytes], peer: PeerId) -> None:
        bad = 0
        for number, data in enumerate(envelopes):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if not self._take_one(topic, data, peer, wanted):
                bad += 1
                if bad >= _BAD_AT_MOST:
                    raise ProtocolViolation(f"{peer.short} gives records that nobody asked for or that are not valid")

    def _blame(self, peer: PeerId, reason: str) -> None:
        self._shell.apply(self.core.broke_protocol(peer, reason, self._clock.monotonic()))

    async def _take_given(self, topic: str, envelopes: list[bytes], peer: PeerId) -> int:
        """As much as the peer may have us validate now, as with gossip."""
        for number, data in enumerate(envelopes):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if not self.core.may_validate(peer, self._clock.monotonic()):
                return number
            self._take_one(topic, data, peer, None)
        return len(envelopes)

    def _take_one(self, topic: str, data: bytes, peer: PeerId, wanted: Container[bytes] | None) -> bool:
        """Judge one record and hand it out unless it is known; False, and the peer is blamed, when it is bad."""
        if topic not in self._topics:
            return True
        try:
            id_ = self._message_id(Message(topic, data))
            if wanted is not None and id_ not in wanted:
                raise ValueError("nobody asked for it")
            if self.core.has_seen(id_):
                return True
            record = self._open(data)
        except (StaleRecord, FromTheFuture):
            return True  # it expired on its way, or the peer's clock is a little off
        except (ValueError, RecordError):
            verdict = Verdict.REJECT
        else:
            verdict, _ = self._validate(topic, record, peer)
            if verdict is Verdict.ACCEPT and self.core.mark_seen(id_):
                self._hand_out(topic, Received(record, peer))
        if verdict is Verdict.REJECT:
            self._shell.apply(self.core.gave_invalid(peer, topic, self._clock.monotonic()))
        return verdict is not Verdict.REJECT
