"""Manifests over sharded topics, so that a worker's traffic does not grow with the network.

A manifest travels on one of 16 topics, chosen by its issuer's peer id. Every peer relays two of them, chosen by its
own id, as long as the network is small; in a large one only so many do, again by id, that each topic has six
relays beside its readers, in turns of an hour: with more, everybody would carry what a few can. Peers that schedule
work subscribe to all. Subscribers provide ``topic:<shard>:<turn>`` in the DHT, and each publisher keeps links to three
subscribers of its shard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final, Self

import trio

from owm.clock import Clock
from owm.dht import Dht
from owm.directory._core_turns import Turns, announced_turns, topic_key, turn_at
from owm.directory._subscribers import KEEP_LINKS_EVERY, Subscribers
from owm.gossip import GossipService, Received, Validation
from owm.identity import PeerId
from owm.net import Network
from owm.records import CapabilityManifest, SignedRecord

__all__ = ["SHARDS", "ManifestTopics", "shard_of"]

SHARDS: Final = 16
_RELAYS: Final = 6  # of one topic, on average, beside those that read it
_RECONSIDER_EVERY: Final = 60.0
_FIRST_LINKS_AFTER: Final = 1.0
_BACKLOG: Final = 4096


def shard_of(peer: PeerId) -> int:
    """The shard that a peer's manifests travel on: by the last byte of its id, which is evenly spread."""
    return peer[-1] % SHARDS


def _relayed(peer: PeerId) -> tuple[int, int]:
    first = peer[-2] % SHARDS
    return first, (first + 1 + peer[-3] % (SHARDS - 1)) % SHARDS


class ManifestTopics:
    """Publishes our manifest, relays two shards, and gives the whole view to those who want it.

    Args:
        relay: whether to relay; onion and low-bandwidth peers may leave it to others.
        clock: its wall time tells the turns in which peers relay.
        joined: returns once the DHT knows our neighbourhood, by which the network's size is known, or nobody is there.
        on_update: called with each manifest that follows one known of the same peer, as it passes.
    """

    def __init__(
        self,
        gossip: GossipService,
        dht: Dht,
        network: Network,
        network_id: str,
        clock: Clock,
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
        self._clock = clock
        self._random = random
        self._relays: tuple[int, ...] = _relayed(network.peer_id) if relay else ()
        self._relaying: set[int] = set()
        self._turns = Turns(int.from_bytes(network.peer_id[-5:-3], "big") / 0x10000)
        self._subscribers = Subscribers(
            gossip, dht, network, random, lambda topic: topic_key(topic, turn_at(clock.time()))
        )
        self._topics = tuple(f"/owm/{network_id}/manifest/{shard:02x}" for shard in range(SHARDS))
        self._own = shard_of(network.peer_id)
        self._subscribed_all = False
        self._current: Callable[[], Iterable[SignedRecord]] = tuple
        self._relayed: dict[PeerId, SignedRecord] = {}
        self._changed = trio.Event()  # what we take part in
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Relay and keep links until the block ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_links)
            nursery.start_soon(self._reconsider)
            nursery.start_soon(self._provide)
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
        return self._subscribers.connected(self._topics[self._own])

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
        self._changed.set()
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

    def _needed(self, size: float | None) -> float:
        """Which share of so many peers has to relay."""
        return _RELAYS * SHARDS / (len(self._relays) * (size or 1.0))

    async def _reconsider(self) -> None:
        """Take up relaying, or leave it to others, as turns change and the network grows and shrinks."""
        await self._joined()  # whoever joins a large network need not begin what it will not do
        while self._relays and not self._subscribed_all:
            needed, now = self._needed(self._dht.statistics().network_size), self._clock.time()
            if self._relaying and self._turns.ends(needed, now):
                # Sybils around us could have it look as if there were many peers: a look elsewhere must agree.
                surveyed = self._needed(await self._dht.survey())
                if self._turns.ends(surveyed, now) and not self._subscribed_all:
                    self._leave_relaying()
            elif not self._relaying and self._turns.begins(needed, now):
                for shard in self._relays:
                    self._relay(shard)
                self._relaying |= set(self._relays)
                self._changed.set()
            await trio.sleep(_RECONSIDER_EVERY * self._random.uniform(0.75, 1.25))

    def _leave_relaying(self) -> None:
        for shard in self._relaying:
            self._gossip.unsubscribe(self._topics[shard])
        self._relaying.clear()
        self._changed.set()

    def _taken_part_in(self) -> Iterable[int]:
        return range(SHARDS) if self._subscribed_all else sorted(self._relaying)

    async def _provide(self) -> None:
        """Be found under this turn's keys of the topics that we take part in, and of no others."""
        provided: set[bytes] = set()
        while True:
            self._changed = trio.Event()
            turns = announced_turns(self._clock.time())
            wanted = [topic_key(self._topics[shard], turn) for turn in turns for shard in self._taken_part_in()]
            for key in sorted(provided.difference(wanted)):
                await self._dht.unprovide(key)
            for key in wanted:
                if key not in provided:
                    await self._dht.provide(key)
            provided = set(wanted)
            with trio.move_on_after(_RECONSIDER_EVERY * self._random.uniform(0.75, 1.25)):
                await self._changed.wait()

    async def _keep_links(self) -> None:
        """Stay connected to subscribers of our shard, and of what we relay or read; one that vanishes is replaced."""
        await trio.sleep(_FIRST_LINKS_AFTER)
        while True:
            await self._subscribers.link(self._topics[self._own])
            for shard in self._taken_part_in():
                await self._subscribers.mesh_up(self._topics[shard])
            await trio.sleep(KEEP_LINKS_EVERY * self._random.uniform(0.75, 1.25))
