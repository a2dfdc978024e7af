"""Closing the connections that were made for queries and are not used any longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import trio

from owm.identity import PeerId
from owm.net import Connection, Network

__all__ = ["Thinning"]


class Thinning:
    """Closes connections that are not used for a while: of those, ours above ``keep`` and anybody's above ``crowd``.

    Ours, which were made for a query, are unused although a lasting stream came along, as gossip's does with every
    connection; of others we cannot know what their peer has them for.

    Args:
        wanted: whether a connection is needed that no stream shows to be used.
        idle: seconds after which a connection counts as unused, about.
        look: called with all connections at each round.
    """

    def __init__(
        self,
        network: Network,
        random: Random,
        idle: float,
        keep: int,
        crowd: int,
        look: Callable[[Sequence[Connection]], None],
        wanted: Callable[[PeerId], bool],
    ) -> None:
        self.dialled: set[PeerId] = set()  #: connections that are here for our queries
        self._network = network
        self._random = random
        self._idle = idle
        self._keep = keep
        self._crowd = crowd
        self._look = look
        self._wanted = wanted

    async def let_go(self, peer: PeerId) -> None:
        """A query's connection has done its work: close it, unless few of them are open or somebody else needs it."""
        self.dialled.add(peer)
        connection = self._network.connection(peer)
        if len(self.dialled) > self._keep and connection is not None and self._is_unused(connection):
            self.dialled.discard(peer)
            await self._network.disconnect(peer)

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        unused: set[PeerId] = set()
        while True:
            await trio.sleep(self._idle * self._random.uniform(0.8, 1.6))
            connections = self._network.connections()
            self._look(connections)
            before, unused = unused, self._unused(connections)
            self.dialled &= {c.peer for c in connections}
            for peer in sorted(unused & before, key=lambda peer: (peer not in self.dialled, peer)):
                left = sum(map(self._network.is_connected, unused))  # the others close connections too
                if left > (self._keep if peer in self.dialled else self._crowd):
                    await self._network.disconnect(peer)

    def _unused(self, connections: Sequence[Connection]) -> set[PeerId]:
        return {connection.peer for connection in connections if self._is_unused(connection)}

    def _is_unused(self, connection: Connection) -> bool:
        busy = connection.busy if connection.peer in self.dialled else connection.streams > 0
        return not busy and not connection.protected and not self._wanted(connection.peer)
