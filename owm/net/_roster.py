"""The live connections by peer: which is preferred, and who counts as connected."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from owm.identity import PeerId
from owm.net._events import EventHub
from owm.net._interface import NetworkEvent, PeerConnected, PeerDisconnected
from owm.net._muxed import MuxedConnection

__all__ = ["Roster"]


class Roster:
    """A peer is connected while one of its connections takes new streams; events tell when that changes.

    Args:
        own: who we are.
    """

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._ends: dict[PeerId, list[MuxedConnection]] = {}
        self._told: dict[PeerId, bool] = {}  # who is connected by the events, and whether they dialled us
        self._events = EventHub()

    def __contains__(self, peer: PeerId) -> bool:
        return any(end.is_usable for end in self._ends.get(peer, ()))

    def __iter__(self) -> Iterator[PeerId]:
        """Who is connected."""
        return (peer for peer in list(self._ends) if peer in self)

    def all(self, peer: PeerId) -> list[MuxedConnection]:
        """A peer's connections, those that end included."""
        return list(self._ends.get(peer, ()))

    def usable(self, peer: PeerId) -> list[MuxedConnection]:
        """The connections with a peer that take new streams, the preferred one first."""
        return [end for end in self._ends.get(peer, ()) if end.is_usable]

    def live(self) -> Iterator[MuxedConnection]:
        """All connections, duplicates after a simultaneous dial included."""
        for ends in list(self._ends.values()):
            yield from list(ends)

    def add(self, connection: MuxedConnection) -> None:
        """A connection came up."""
        peer = connection.remote
        ends = self._ends.setdefault(peer, [])
        # After a simultaneous dial both sides prefer the one that the smaller id dialled; the other runs dry. Of two
        # that were dialled from the same side the newer one: its maker has lost the older.
        ends.insert(0, connection)
        ends.sort(key=lambda end: end.inbound == (self._own < peer))
        self.tell(peer, "")

    def remove(self, connection: MuxedConnection) -> None:
        """A connection is gone."""
        peer = connection.remote
        ends = self._ends.get(peer, [])
        if connection in ends:
            ends.remove(connection)
        if not ends:
            self._ends.pop(peer, None)
        self.tell(peer, connection.reason)

    def tell(self, peer: PeerId, reason: str) -> None:
        """Publish that a peer is connected from now on, or no longer, if that has changed."""
        usable = self.usable(peer)
        if usable and peer not in self._told:
            self._told[peer] = usable[0].inbound
            self._events.publish(PeerConnected(peer, usable[0].inbound))
        elif not usable and peer in self._told:
            del self._told[peer]
            self._events.publish(PeerDisconnected(peer, reason))

    def subscribe(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """Events from now on, after one for everybody who is connected."""
        return self._events.subscribe(PeerConnected(peer, inbound) for peer, inbound in self._told.items())

    def close(self) -> None:
        """End all subscriptions."""
        self._events.close()
