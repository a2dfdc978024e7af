"""What befalls the nodes of a run: churn, and the events of the scenario."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from owm.dht._core_types import Contact
from simulations._churn import Churn
from simulations._engine import SECOND
from simulations._node import Node
from simulations._scenario import Event

if TYPE_CHECKING:
    from simulations._world import World

__all__ = ["Happenings"]

_REMEMBERED = 8  # peers that a returning node still knows
_KEEP_ALIVE = 30 * SECOND  # until a connection that is cut is given up
_DOWN = 5 * SECOND  # of a restart


class Happenings:
    """Lets nodes come and go, cuts the network and heals it.

    Attributes:
        side: the nodes on one side of the last partition; empty before there was one.
        healed_at: seconds at which it ended; inf while it lasts, or when there was none.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.heap.stream("happenings")
        self._churn = Churn(world.scenario.churn, world.heap.stream("churn"))
        self.side: set[int] = set()
        self.healed_at = math.inf

    def apart(self, a: int, b: int) -> bool:
        """Whether two nodes cannot be asked to find each other: cut off, or healed too short a time ago."""
        if not self.side or (a in self.side) == (b in self.side):
            return False
        return self._world.heap.seconds < self.healed_at + self._world.scenario.workload.settle

    def across(self, a: int, b: int) -> bool:
        """Whether two nodes were on different sides of the last partition."""
        return bool(self.side) and (a in self.side) != (b in self.side)

    # -- churn

    def populate(self) -> list[Node]:
        """Schedule everybody's comings and goings and all events; returns who is online from the start."""
        world = self._world
        online = []
        for event in world.scenario.events:
            world.heap.at(int(event.at * SECOND), self._happen, event)
        for node in world.nodes:
            if node.hostile or not node.index or self._starts_online(node):
                online.append(node)
        return online

    def _starts_online(self, node: Node) -> bool:
        world = self._world
        traced = self._churn.schedule(node.index)
        for up, down in traced:
            world.heap.at(int(up * SECOND), self._return, node, False)
            world.heap.at(int(down * SECOND), self._depart, node, False)
        if traced:
            return any(up <= 0 < down for up, down in traced)
        if not self._churn.churns():
            return True
        population = world.scenario.population
        if not population.converged:  # a session begins with the joining
            left = node.index * population.join_interval + self._churn.session()
            world.heap.at(int(left * SECOND), self._depart, node, True)
            return True
        online = self._churn.starts_online()
        change = self._depart if online else self._return
        world.heap.at(int(self._churn.first(online) * SECOND), change, node, True)
        return online

    def _depart(self, node: Node, again: bool) -> None:
        if node.online:
            self._world.leave(node)
        if again:
            self._world.heap.at(self._world.heap.now + int(self._churn.absence() * SECOND), self._return, node, True)

    def _return(self, node: Node, again: bool) -> None:
        world = self._world
        if not node.online:
            if node.dht is not None:
                known = node.dht.table.sample(self._chance, _REMEMBERED)
            else:  # it was here before the run began
                known = [world.random_honest(self._chance, but=node).contact for _ in range(_REMEMBERED)]
            world.come_back(node, known)
        if again:
            world.heap.at(world.heap.now + int(self._churn.session() * SECOND), self._depart, node, True)

    # -- events

    def _happen(self, event: Event) -> None:
        world = self._world
        if event.kind == "heal":
            world.watch.note_heal()
            world.links.heal()  # nobody is told: the peers must find each other
            self.healed_at = world.heap.seconds
            return
        struck = [world.nodes[0]]
        if not event.first:
            struck = self._chance.sample(world.honest, int(len(world.honest) * event.share))
        if event.kind == "partition":
            self._cut([node.index for node in struck], event.one_way)
            return
        for node in struck:
            if event.kind == "stop":
                world.leave(node)
            elif event.kind == "freeze":
                node.frozen = True
            elif event.kind == "restart" and node.online:
                cache = node.dht.export_peers() if node.dht is not None else []
                world.leave(node)
                world.heap.at(world.heap.now + _DOWN, self._restart, node, cache)

    def _cut(self, side: list[int], one_way: bool) -> None:
        world = self._world
        world.links.partition(side, one_way)
        self.side, self.healed_at = set(side), math.inf
        for node in world.honest:
            for other in node.links:
                if self.across(node.index, other):
                    world.heap.at(world.heap.now + _KEEP_ALIVE, world.unlink, node, other)

    def _restart(self, node: Node, cache: list[Contact]) -> None:
        """Come back with nothing but the peer cache that a peer keeps on its disk."""
        if not node.online:
            self._world.come_back(node, [], cache)
