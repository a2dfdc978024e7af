"""The directory as a running peer uses it: the core, fed from gossip and from the network's events."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable

import structlog

from owm.clock import Clock
from owm.directory._core_directory import DirectoryCore, DirectoryStatistics, Peer
from owm.identity import Identity, PeerId
from owm.net import Network, PeerConnected
from owm.records import SignedRecord

__all__ = ["Directory"]

_log = structlog.get_logger(__name__)


class Directory:
    """Who is there and what they can do, from verified manifests and our own measurements.

    Args:
        nonce: of this process; goes into our manifest, so that a second machine with our key is noticed (both sides
            see the other's nonce).
        on_doppelganger: called once, when the first one shows up.
    """

    def __init__(
        self, identity: Identity, nonce: bytes, clock: Clock, on_doppelganger: Callable[[], None] | None = None
    ) -> None:
        self._core = DirectoryCore(identity.peer_id, nonce, identity.derive("pseudonyms"))
        self._clock = clock
        self._on_doppelganger = on_doppelganger
        self._listeners: list[Callable[[], None]] = []

    def note(self, record: SignedRecord) -> bool:
        """Take in a verified record; returns whether it was news."""
        noted = self._core.note(record, self._clock.monotonic())
        if noted.doppelganger and self._core.doppelgangers == 1:
            _log.error("another process runs with this identity: stop one of them, or give it its own identity.key")
            if self._on_doppelganger is not None:
                self._on_doppelganger()
        if noted.updated:
            self._changed()
        return noted.updated

    async def follow(self, records: AsyncIterable[SignedRecord]) -> None:
        """Take in records until the channel ends. Cancellation loses at most the record not yet taken."""
        async for record in records:
            self.note(record)

    async def watch(self, network: Network) -> None:
        """Keep track of who is connected; runs until cancelled."""
        async for event in network.events():
            self._core.set_connected(event.peer, isinstance(event, PeerConnected))
            self._changed()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever peers may have become usable."""
        self._listeners.append(listener)

    def expire(self) -> int:
        """Forget peers whose manifests expired; call it now and then. Queries never return them anyway."""
        return self._core.expire(self._clock.monotonic())

    def succeeded(self, peer: PeerId, latency: float | None = None) -> None:
        """It answered, the first output after ``latency`` seconds."""
        self._core.succeeded(peer, latency)

    def failed(self, peer: PeerId) -> None:
        """It failed us; others are preferred for a while."""
        self._core.failed(peer, self._clock.monotonic())

    def get(self, peer: PeerId) -> Peer | None:
        """A peer with a fresh manifest, or None."""
        return self._core.get(peer, self._clock.monotonic())

    def peers(self) -> list[Peer]:
        return self._core.peers(self._clock.monotonic())

    def eligible(self, task_type: str, model: str = "", min_tier: str = "t0", *, paused: bool = False) -> list[Peer]:
        """Usable workers; with ``paused`` also those that failed lately."""
        return self._core.eligible(task_type, model, min_tier, self._clock.monotonic(), paused=paused)

    def pseudonym(self, peer: PeerId) -> str:
        """What the public API calls a peer: 16 hex digits."""
        return self._core.pseudonym(peer)

    def statistics(self) -> DirectoryStatistics:
        return self._core.statistics(self._clock.monotonic())

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
