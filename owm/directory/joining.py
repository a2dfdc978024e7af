"""Getting into the network and staying in it.

Ways in are tried in this order, all of them: peers remembered from earlier runs, addresses from the settings or an
invite, and whatever further sources the peer was given (the local network, a Phase 1 coordinator). A peer with no way
in keeps trying with back-off, and :attr:`Joiner.status` says exactly what failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import structlog
import trio

from owm.dht import Dht
from owm.identity import PeerId
from owm.net import Network, PeerConnected
from owm.net.errors import DialFailed, NetworkError

__all__ = ["JoinStatus", "Joiner", "Lead", "split_address"]

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 60.0
_LOOK_AGAIN: Final = 15.0
_MEET: Final = 8  # further ways in that are tried once we have joined
_DIAL_SECONDS: Final = 12.0
_REMEMBERED_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Lead:
    """Somebody to try: an address, and whom we expect there (None: whoever answers)."""

    peer: PeerId | None
    address: str


@dataclass(slots=True)
class JoinStatus:
    """How joining goes, in words for ``owm status``."""

    joined: bool = False
    attempts: int = 0
    leads: int = 0  #: how many the last attempt had
    failures: dict[str, str] = field(default_factory=dict)  #: what each lead failed with, the latest

    @property
    def summary(self) -> str:
        if self.joined:
            return "joined"
        if not self.failures:
            return "joining" if self.leads else "alone: no peer to join through is known"
        failed = "; ".join(f"{address}: {reason}" for address, reason in list(self.failures.items())[:5])
        return f"not joined after {self.attempts} attempts: {failed}"


Source = Callable[[], Awaitable[Sequence[Lead]]]


def split_address(text: str) -> Lead:
    """Read a multiaddr that may end in ``/p2p/<peer id>``; raises ValueError for a bad peer id."""
    address, _, peer = text.partition("/p2p/")
    return Lead(PeerId.parse(peer) if peer else None, address)


class Joiner:
    """Keeps a peer connected to at least ``target`` others.

    Args:
        sources: named ways in, in the order in which they are tried.
        target: connections to hold; more come in by themselves, up to the network's cap.
    """

    def __init__(
        self, network: Network, dht: Dht, sources: Sequence[tuple[str, Source]], random: Random, target: int = 5
    ) -> None:
        self._network = network
        self._dht = dht
        self._sources = sources
        self._random = random
        self._target = target
        self.status = JoinStatus()
        self._settled = trio.Event()
        self._turned = trio.Event()  # from alone to connected, or back
        self._nursery: trio.Nursery | None = None

    async def wait_joined(self) -> None:
        """Return once we are connected and the routing table has been filled, or when there is nobody to join."""
        await self._settled.wait()

    async def run(self) -> None:
        """Join, then keep the number of connections up. Runs until cancelled, which leaves connections as they are."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch)
            await self._keep_joined()

    async def _keep_joined(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            self._turned = trio.Event()
            if self._network.peers():
                self._note_joined()
                await self._widen()
                wait = _LOOK_AGAIN
            elif await self._join():
                backoff = _FIRST_BACKOFF
                continue
            else:
                if not self.status.failures:
                    self._settled.set()  # the first peer of a network has nobody to join
                wait = backoff
                backoff = min(backoff * 2, _LONGEST_BACKOFF)
            with trio.move_on_after(wait * self._random.uniform(0.75, 1.25)):
                await self._turned.wait()

    async def _watch(self) -> None:
        """Notice at once when the last connection goes, and when somebody dials us who were alone."""
        peers: set[PeerId] = set()
        async with self._network.events() as events:
            async for event in events:
                (peers.add if isinstance(event, PeerConnected) else peers.discard)(event.peer)
                connected = bool(peers)
                if connected != self.status.joined:
                    self.status.joined = False
                    self._turned.set()

    def _note_joined(self) -> None:
        if not self.status.joined:
            self.status.joined = True
            self.status.failures.clear()
            _log.info("joined the network", connections=len(self._network.peers()))
        self._settled.set()

    async def _join(self) -> bool:
        self.status.attempts += 1
        self.status.leads = 0
        with trio.move_on_after(_REMEMBERED_SECONDS):
            await self._dht.bootstrap()  # through peers remembered from earlier runs
        joined = bool(self._network.peers())
        rest: list[Lead] = []
        for name, source in self._sources:
            for lead in await source():
                if lead.peer == self._network.peer_id:
                    continue
                self.status.leads += 1
                if joined:
                    rest.append(lead)
                elif await self._dial(lead, name):
                    await self._dht.bootstrap()
                    joined = True
        if rest and self._nursery is not None:
            self._nursery.start_soon(self._meet, rest[:_MEET])
        if not joined and self._network.peers():  # somebody may have dialled us meanwhile
            await self._dht.bootstrap()
            joined = True
        return joined

    async def _meet(self, leads: Sequence[Lead]) -> None:
        """Dial the other ways in too: who we joined through may know a part of the network only, or be an attacker."""
        met = False
        for lead in leads:
            if lead.peer is not None and self._network.is_connected(lead.peer):
                continue
            try:
                with trio.move_on_after(_DIAL_SECONDS) as scope:
                    await self._network.connect(lead.peer, [lead.address])
                met = met or not scope.cancelled_caught
            except NetworkError as error:
                _log.debug("a further way in did not answer", address=lead.address, reason=str(error))
        if met:
            await self._dht.bootstrap()

    async def _dial(self, lead: Lead, source: str) -> bool:
        try:
            with trio.fail_after(_DIAL_SECONDS):
                await self._network.connect(lead.peer, [lead.address])
        except trio.TooSlowError:
            self._failed(lead, source, f"no answer within {_DIAL_SECONDS:.0f} s")
        except DialFailed as error:
            self._failed(lead, source, error.reasons.get(lead.address, str(error)))
        except NetworkError as error:
            self._failed(lead, source, str(error))
        else:
            return True
        return False

    def _failed(self, lead: Lead, source: str, reason: str) -> None:
        if len(self.status.failures) < 64 or lead.address in self.status.failures:
            self.status.failures[lead.address] = reason
        _log.info("cannot join through a peer", source=source, address=lead.address, reason=reason)

    async def _widen(self) -> None:
        """Connect to peers of the routing table until there are ``target``."""
        missing = self._target - len(self._network.peers())
        if missing <= 0:
            return
        known = self._dht.known_peers(self._target * 4)
        if len(known) < self._target:
            await self._dht.bootstrap()
            known = self._dht.known_peers(self._target * 4)
        for provider in known:
            if missing <= 0:
                return
            if provider.peer == self._network.peer_id or self._network.is_connected(provider.peer):
                continue
            try:
                with trio.move_on_after(_DIAL_SECONDS):
                    await self._network.connect(provider.peer, provider.addresses)
                    missing -= 1
            except NetworkError as error:
                _log.debug("cannot connect to a known peer", peer=provider.peer.short, reason=str(error))
