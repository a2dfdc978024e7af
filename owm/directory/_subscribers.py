"""Staying connected to subscribers of topics, as the DHT names them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import structlog
import trio

from owm.dht import Dht, Provider
from owm.gossip import GossipService
from owm.identity import PeerId
from owm.net import Network
from owm.net.errors import NetworkError

__all__ = ["KEEP_LINKS_EVERY", "Subscribers"]

_log = structlog.get_logger(__name__)

KEEP_LINKS_EVERY: Final = 20.0
_LINKS: Final = 3
_MESH: Final = 5  # subscribers of a topic of ours that we are connected to
_ASKED: Final = 20  # providers that are asked for
_LONGEST_PAUSE: Final = 600.0  # between two searches for subscribers that find nobody
_DIAL_SECONDS: Final = 10.0
_TOLD_SECONDS: Final = 3.0  # within which a peer says what it subscribes to
_TAG: Final = "manifest-shard"


class _Search:
    """When to look for a topic's subscribers again: rarely while that finds nobody, at once when one was lost."""

    def __init__(self) -> None:
        self._pause = KEEP_LINKS_EVERY
        self._next = 0.0
        self._missing = 0

    def is_due(self, missing: int, now: float) -> bool:
        return now >= self._next or missing > self._missing

    def ended(self, found: int, missing: int, now: float) -> None:
        self._pause = KEEP_LINKS_EVERY if found else min(2 * self._pause, _LONGEST_PAUSE)
        self._next, self._missing = now + self._pause - KEEP_LINKS_EVERY / 2, missing


class Subscribers:
    """Links to subscribers of a topic that we publish on, and connections with those of topics that we take part in.

    Args:
        key: the DHT key that a topic's subscribers provide now.
    """

    def __init__(
        self, gossip: GossipService, dht: Dht, network: Network, random: Random, key: Callable[[str], bytes]
    ) -> None:
        self._gossip = gossip
        self._dht = dht
        self._network = network
        self._random = random
        self._key = key
        self._linked: set[PeerId] = set()
        self._searches: dict[tuple[str, int], _Search] = {}

    def connected(self, topic: str) -> list[PeerId]:
        return [peer for peer in self._gossip.core.subscribers(topic) if self._network.is_connected(peer)]

    async def link(self, topic: str) -> None:
        """Keep links to three subscribers; who left, or subscribes no longer, is replaced."""
        subscribers = self.connected(topic)
        for peer in sorted(self._linked.difference(subscribers)):
            self._linked.discard(peer)
            self._network.protect(peer, _TAG, protected=False)
            await self._let_go(peer)
        for peer in subscribers:
            if len(self._linked) < _LINKS:
                self._keep(peer)
        for peer in await self._more(topic, _LINKS, len(self._linked)):
            self._keep(peer)

    async def mesh_up(self, topic: str) -> None:
        """A mesh is made of connected peers: in a large network few subscribers would meet by chance."""
        await self._more(topic, _MESH, len(self.connected(topic)))

    def _keep(self, peer: PeerId) -> None:
        self._linked.add(peer)
        self._network.protect(peer, _TAG)

    async def _more(self, topic: str, wanted: int, have: int) -> list[PeerId]:
        """Connect to as many more of the topic's subscribers, a few at a time."""
        missing = wanted - have
        search = self._searches.setdefault((topic, wanted), _Search())
        if missing <= 0 or not search.is_due(missing, trio.current_time()):
            return []
        providers = await self._dht.find_providers(self._key(topic), _ASKED)
        self._random.shuffle(providers)
        known = {self._network.peer_id, *self._linked, *self.connected(topic)}
        candidates = [provider for provider in providers if provider.peer not in known]
        found: list[PeerId] = []
        while candidates and len(found) < missing:
            batch = [candidates.pop() for _ in range(min(len(candidates), missing - len(found)))]
            async with trio.open_nursery() as nursery:
                for provider in batch:
                    nursery.start_soon(self._reach, topic, provider, found)
        search.ended(len(found), missing - len(found), trio.current_time())
        return found

    async def _reach(self, topic: str, provider: Provider, found: list[PeerId]) -> None:
        """Connect to one that may subscribe; the DHT also remembers those that do no longer."""
        peer, fresh = provider.peer, not self._network.is_connected(provider.peer)
        try:
            with trio.fail_after(_DIAL_SECONDS):
                await self._network.connect(peer, provider.addresses)
        except (NetworkError, trio.TooSlowError) as error:
            _log.debug("cannot link to a subscriber", peer=peer.short, reason=str(error))
            return
        self._gossip.meet(peer)
        with trio.move_on_after(_TOLD_SECONDS):
            while self._network.is_connected(peer):
                if peer in self._gossip.core.subscribers(topic):
                    found.append(peer)
                    return
                await trio.sleep(0.1)
        if fresh:
            await self._let_go(peer)

    async def _let_go(self, peer: PeerId) -> None:
        """Close a connection that was made for gossip, unless it serves somebody."""
        connection = self._network.connection(peer)
        if connection is not None and not (connection.busy or connection.protected or self._gossip.core.needs(peer)):
            await self._network.disconnect(peer)
