"""Manifests over sharded topics, so that a worker's traffic does not grow with the network.

A manifest travels on one of 16 topics, chosen by its issuer's peer id. Every peer relays two of them, chosen by its
own id, as long as the network is small; in a large one only so many do, again by id, that each topic has six
relays beside its readers, in turns of an hour: with more, everybody would carry what a few can. Peers that schedule
work subscribe to all. Subscribers provide ``topic:<shard>`` in the DHT, and each publisher keeps links to three
subscribers of its shard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final, Self

import structlog
import trio

from owm.dht import Dht
from owm.gossip import GossipService, Received, Validation
from owm.identity import PeerId
from owm.net import Network
from owm.net.errors import NetworkError
from owm.records import CapabilityManifest, SignedRecord

__all__ = ["SHARDS", "ManifestTopics", "shard_of"]

_log = structlog.get_logger(__name__)

SHARDS: Final = 16
_LINKS: Final = 3
_MESH: Final = 5  # subscribers of a topic of ours that we are connected to
_KEEP_LINKS_EVERY: Final = 20.0
_RELAYS: Final = 6  # of one topic, on average, beside those that read it
_LONGEST_PAUSE: Final = 600.0  # between two searches for subscribers that find nobody
_RECONSIDER_EVERY: Final = 60.0
_TURN: Final = 3600.0  # seconds until relays change
_GOLDEN: Final = 0.6180339887  # multiples of it fall evenly into every part of 0 to 1
_FIRST_LINKS_AFTER: Final = 1.0
_DIAL_SECONDS: Final = 10.0
_BACKLOG: Final = 4096
_TAG: Final = "manifest-shard"


def shard_of(peer: PeerId) -> int:
    """The shard that a peer's manifests travel on: by the last byte of its id, which is evenly spread."""
    return peer[-1] % SHARDS


def _relayed(peer: PeerId) -> tuple[int, int]:
    first = peer[-2] % SHARDS
    return first, (first + 1 + peer[-3] % (SHARDS - 1)) % SHARDS


class _Search:
    """When to look for a topic's subscribers again: rarely while that finds nobody, at once when one was lost."""

    def __init__(self) -> None:
        self._pause = _KEEP_LINKS_EVERY
        self._next = 0.0
        self._missing = 0

    def is_due(self, missing: int, now: float) -> bool:
        return now >= self._next or missing > self._missing

    def ended(self, found: int, missing: int, now: float) -> None:
        self._pause = _KEEP_LINKS_EVERY if found else min(2 * self._pause, _LONGEST_PAUSE)
        self._next, self._missing = now + self._pause - _KEEP_LINKS_EVERY / 2, missing


class ManifestTopics:
    """Publishes our manifest, relays two shards, and gives the whole view to those who want it.

    Args:
        relay: whether to relay; onion and low-bandwidth peers may leave it to others.
        joined: returns once the DHT knows our neighbourhood, by which the network's size is known, or nobody is there.
        on_update: called with each manifest that follows one known of the same peer, as it passes.
    """

    def __init__(
        self,
        gossip: GossipService,
        dht: Dht,
        network: Network,
        network_id: str,
        random: Random,
        *,
        relay: bool = True,
        joined: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        on_update: Callable[[SignedRecord], None] = lambda _: None,
    ) -> None:
        self._gossip = gossip
        self._joined = joined
        self._on_update = on_update
        self._dht = dht
        self._network = network
        self._random = random
        self._relays: tuple[int, ...] = _relayed(network.peer_id) if relay else ()
        self._relaying: set[int] = set()
        self._place = int.from_bytes(network.peer_id[-5:-3], "big") / 0x10000  # ours among all peers, at first
        self._topics = tuple(f"/owm/{network_id}/manifest/{shard:02x}" for shard in range(SHARDS))
        self._own = shard_of(network.peer_id)
        self._subscribed_all = False
        self._current: Callable[[], Iterable[SignedRecord]] = tuple
        self._relayed: dict[PeerId, SignedRecord] = {}
        self._linked: set[PeerId] = set()
        self._searches: dict[tuple[str, int], _Search] = {}
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Relay and keep links until the block ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_links)
            nursery.start_soon(self._reconsider)
            try:
                yield self
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def set_current(self, current: Callable[[], Iterable[SignedRecord]]) -> None:
        """Say which manifests we hold, for peers that have just subscribed and fetch them all."""
        self._current = current

    async def publish(self, record: SignedRecord) -> int:
        """Send our manifest to its shard; returns the peers that it was sent to at once."""
        self._relayed[record.issuer] = record
        return await self._gossip.publish(self._topics[self._own], record)

    def newest(self, peer: PeerId) -> SignedRecord | None:
        """A peer's newest manifest among those that we relay or read."""
        return self._relayed.get(peer)

    def holders(self) -> list[PeerId]:
        """Connected peers that get every manifest of our shard."""
        return self._connected(self._topics[self._own])

    async def subscribe_all(self) -> trio.MemoryReceiveChannel[Received]:
        """Every manifest of the network, as it arrives; the present ones are fetched first. Needs :meth:`running`."""
        if self._nursery is None:
            raise RuntimeError("enter running() first")
        send, receive = trio.open_memory_channel[Received](_BACKLOG)
        self._subscribed_all = True
        for shard in range(SHARDS):
            validator = None if shard in self._relaying else self._validator(shard)  # one each, or all is known twice
            channel = self._gossip.subscribe(self._topics[shard], validator)
            self._gossip.register_current(self._topics[shard], partial(self._known, shard))
            self._nursery.start_soon(self._merge, channel, send)
        self._nursery.start_soon(self._provide)
        return receive

    async def _merge(self, channel: trio.MemoryReceiveChannel[Received], out: trio.MemorySendChannel[Received]) -> None:
        async for received in channel:
            await out.send(received)

    def _validator(self, shard: int) -> Callable[[SignedRecord, PeerId], Validation]:
        def validate(record: SignedRecord, _forwarder: PeerId) -> Validation:
            if not isinstance(record.record, CapabilityManifest) or shard_of(record.issuer) != shard:
                return Validation.REJECT
            known = self._relayed.get(record.issuer)
            if known is not None and known.sequence >= record.sequence:
                return Validation.IGNORE
            self._relayed[record.issuer] = record
            if known is not None:
                self._on_update(record)
            if len(self._relayed) > _BACKLOG:
                del self._relayed[next(iter(self._relayed))]
            return Validation.ACCEPT

        return validate

    def _known(self, shard: int) -> Sequence[SignedRecord]:
        """The manifests of a shard that we would pass on: ours, relayed ones, and the directory's."""
        found = {peer: record for peer, record in self._relayed.items() if shard_of(peer) == shard}
        for record in self._current():
            if shard_of(record.issuer) == shard:
                known = found.get(record.issuer)
                if known is None or known.sequence < record.sequence:
                    found[record.issuer] = record
        return list(found.values())

    def _relay(self, shard: int) -> None:
        self._gossip.relay(self._topics[shard], self._validator(shard))
        self._gossip.register_current(self._topics[shard], partial(self._known, shard))

    def _share(self) -> float:
        """Our place among all peers, from 0 to 1; another one each hour, or a few would carry most for ever."""
        return (self._place + trio.current_time() // _TURN * _GOLDEN) % 1.0

    def _needed(self, size: float | None) -> float:
        """Which share of so many peers has to relay."""
        return _RELAYS * SHARDS / (len(self._relays) * (size or 1.0))

    async def _reconsider(self) -> None:
        """Take up relaying, or leave it to others, as the network grows and shrinks."""
        await self._joined()  # whoever joins a large network need not begin what it will not do
        while self._relays and not self._subscribed_all:
            needed, share = self._needed(self._dht.statistics().network_size), self._share()
            if self._relaying and share > 1.25 * needed:
                # Sybils around us could have it look as if there were many peers: a look elsewhere must agree.
                if share > 1.25 * self._needed(await self._dht.survey()):
                    await self._leave_relaying()
            elif not self._relaying and share <= needed:
                for shard in sorted(self._relays):
                    self._relay(shard)
                self._relaying |= set(self._relays)
                await self._provide()
            await trio.sleep(_RECONSIDER_EVERY * self._random.uniform(0.75, 1.25))

    async def _leave_relaying(self) -> None:
        """Leave the relayed topics one by one; whoever subscribes to all meanwhile keeps those that are left."""
        while self._relaying and not self._subscribed_all:
            shard = min(self._relaying)
            self._relaying.discard(shard)
            self._gossip.unsubscribe(self._topics[shard])
            await self._dht.unprovide(_key(self._topics[shard]))
        if self._subscribed_all:
            await self._provide()

    async def _provide(self) -> None:
        for shard in range(SHARDS) if self._subscribed_all else self._relays:
            await self._dht.provide(_key(self._topics[shard]))

    async def _keep_links(self) -> None:
        """Stay connected to subscribers of our shard, and of what we relay or read; one that vanishes is replaced."""
        await trio.sleep(_FIRST_LINKS_AFTER)
        while True:
            await self._link()
            for shard in range(SHARDS) if self._subscribed_all else sorted(self._relaying):
                await self._mesh_up(self._topics[shard])
            await trio.sleep(_KEEP_LINKS_EVERY * self._random.uniform(0.75, 1.25))

    async def _link(self) -> None:
        topic = self._topics[self._own]
        for peer in [peer for peer in self._linked if not self._network.is_connected(peer)]:
            self._linked.discard(peer)
            self._network.protect(peer, _TAG, protected=False)
        for peer in self._connected(topic):
            if len(self._linked) < _LINKS and peer not in self._linked:
                self._keep(peer)
        await self._dial(topic, _LINKS, len(self._linked), self._keep)

    async def _mesh_up(self, topic: str) -> None:
        """A mesh is made of connected peers: in a large network few subscribers would meet by chance."""
        await self._dial(topic, _MESH, len(self._connected(topic)), lambda _: None)

    def _connected(self, topic: str) -> list[PeerId]:
        return [peer for peer in self._gossip.core.subscribers(topic) if self._network.is_connected(peer)]

    async def _dial(self, topic: str, wanted: int, have: int, reached: Callable[[PeerId], None]) -> None:
        """Connect to as many more of the topic's subscribers, as the DHT names them."""
        missing = wanted - have
        search = self._searches.setdefault((topic, wanted), _Search())
        if missing <= 0 or not search.is_due(missing, trio.current_time()):
            return
        providers = await self._dht.find_providers(_key(topic), 4 * _MESH)
        self._random.shuffle(providers)
        before = missing
        for provider in providers:
            if missing <= 0:
                break
            if provider.peer == self._network.peer_id or provider.peer in self._linked:
                continue
            fresh = not self._network.is_connected(provider.peer)
            try:
                with trio.move_on_after(_DIAL_SECONDS) as scope:
                    await self._network.connect(provider.peer, provider.addresses)
                if not scope.cancelled_caught:
                    self._gossip.meet(provider.peer)
                    reached(provider.peer)
                    missing -= fresh or provider.peer in self._linked
            except NetworkError as error:
                _log.debug("cannot link to a subscriber", peer=provider.peer.short, reason=str(error))
        search.ended(before - missing, missing, trio.current_time())

    def _keep(self, peer: PeerId) -> None:
        self._linked.add(peer)
        self._network.protect(peer, _TAG)


def _key(topic: str) -> bytes:
    return f"topic:{topic}".encode()
