"""Catching up: what a newcomer fetches first, and what neighbours compare now and then because gossip alone loses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Container, Iterable
from random import Random
from typing import Final

import structlog
import trio

from owm.gossip._core import GossipCore
from owm.gossip._sync import SyncService
from owm.identity import PeerId
from owm.net.errors import NetworkError, ProtocolNotSupported, ProtocolViolation

__all__ = ["Admit", "CatchUp"]

_log = structlog.get_logger(__name__)

_FAILURES: Final = (NetworkError, ProtocolNotSupported, ProtocolViolation)
_FROM: Final = 2  # peers that a newcomer hears out
_SILENT: Final = 1.0  # seconds after which somebody else is asked as well
_AT_ONCE: Final = 6  # peers asked at once, silent ones included
_HURRY: Final = 10.0  # seconds in which a newcomer looks for somebody to ask at every turn
_PATIENCE: Final = 2.0
_FETCHED: Final = 20_000  # records from one peer in one go
_PAGE: Final = 256  # ids in one question
_GIVEN: Final = 256  # records that a peer is given at one comparison; what is beyond waits for the next
_SPREAD: Final = 0.25

#: Takes envelopes of a topic, the ids that were asked for and of whom; raises ProtocolViolation for too many bad ones.
Admit = Callable[[str, Collection[bytes], Container[bytes], PeerId], Awaitable[None]]


class CatchUp:
    """Fetches sets from other subscribers.

    Args:
        topics: ours now.
        admit: is handed what others gave.
        blame: told whom did not keep to the protocol, and how.
        random: chooses with whom to compare, and spreads when.
        every: seconds between two comparisons of the grow-only sets with a neighbour.
    """

    def __init__(
        self,
        core: GossipCore[PeerId],
        sync: SyncService,
        topics: Container[str],
        admit: Admit,
        blame: Callable[[PeerId, str], None],
        random: Random,
        every: float,
    ) -> None:
        self._core = core
        self._sync = sync
        self._topics = topics
        self._admit = admit
        self._blame = blame
        self._random = random
        self._every = every

    async def fetch_first(self, topic: str) -> None:
        """Fetch the current records of a topic from two subscribers at once, and from others where those are silent."""
        heard: dict[PeerId, float] = {}  # when whom we asked last said something
        asking: set[PeerId] = set()
        answered = 0
        changed = trio.Event()

        async def ask(peer: PeerId, backwards: bool) -> None:
            nonlocal answered
            try:
                await self._fetch(topic, peer, lambda: heard.update({peer: trio.current_time()}), backwards)
                answered += 1
            except _FAILURES as error:
                self._failed(topic, peer, error)
            asking.discard(peer)
            changed.set()

        hurry_until = trio.current_time() + _HURRY
        async with trio.open_nursery() as nursery:
            while answered < _FROM and topic in self._topics:
                now = trio.current_time()
                lively = sum(now - heard[peer] < _SILENT for peer in asking)
                fresh = [peer for peer in self._subscribers(topic) if peer not in heard]
                for peer in fresh[: max(0, min(_FROM - answered - lively, _AT_ONCE - len(asking)))]:
                    heard[peer] = now
                    asking.add(peer)
                    nursery.start_soon(ask, peer, len(heard) % 2 == 0)  # two that are asked at once meet in the middle
                hurry = now < hurry_until
                if answered and not (hurry or fresh or asking):
                    break
                # The first peer of a network may wait for hours until somebody comes who knows anything.
                with trio.move_on_after(self._core.params.heartbeat / 4 if hurry or asking else _PATIENCE):
                    await changed.wait()
                    changed = trio.Event()
                for gone in heard.keys() - asking - set(self._core.peers()):
                    del heard[gone]  # one that failed and comes back is asked again
            nursery.cancel_scope.cancel()

    async def keep_comparing(self) -> None:
        """Compare each grow-only set with one neighbour now and then: fetch what we lack, give what it lacks."""
        while True:
            await trio.sleep(self._every * self._random.uniform(1 - _SPREAD, 1 + _SPREAD))
            for topic in self._sync.growing():
                peers = self._core.mesh(topic) or self._core.subscribers(topic)
                if not peers or topic not in self._topics:
                    continue
                peer = self._random.choice(peers)
                try:
                    with trio.move_on_after(self._every / 2):
                        surplus = await self._fetch(topic, peer)
                        await self._give(topic, peer, surplus)
                except _FAILURES as error:
                    self._failed(topic, peer, error)

    def _failed(self, topic: str, peer: PeerId, error: Exception) -> None:
        _log.debug("a set was not fetched", topic=topic, peer=peer.short, error=str(error))
        if isinstance(error, ProtocolViolation):
            self._blame(peer, str(error))

    def _subscribers(self, topic: str) -> Iterable[PeerId]:
        return dict.fromkeys((*self._core.mesh(topic), *self._core.subscribers(topic)))

    async def _fetch(
        self, topic: str, peer: PeerId, heard: Callable[[], None] = lambda: None, backwards: bool = False
    ) -> list[bytes]:
        """Fetch what the peer has and we lack; returns the ids of what we have and it lacks."""
        comparison = await self._sync.compare(peer, topic, _FETCHED, heard)
        wanted = comparison.missing[:_FETCHED]
        if backwards:
            wanted.reverse()
        while wanted := self._sync.lacking(topic, wanted):  # another may have given some meanwhile
            page = wanted[:_PAGE]
            got = await self._sync.fetch(peer, topic, page)
            heard()
            if not got:
                break  # the records have expired there meanwhile
            await self._admit(topic, got, frozenset(page), peer)
            wanted = wanted[len(got) :]
        return comparison.surplus

    async def _give(self, topic: str, peer: PeerId, ids: list[bytes]) -> None:
        if len(ids) > _GIVEN:
            ids = self._random.sample(ids, _GIVEN)  # or a peer that refuses the first would never be given the others
        while ids:
            given, taken = await self._sync.give(peer, topic, ids)
            if taken < given or not given:
                return  # that is all that it wants of us now
            ids = ids[given:]
