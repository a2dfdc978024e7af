"""Looks at the whole network now and then, and once more at the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from simulations._engine import SECOND
from simulations._measure import Sample
from simulations._node import Node

if TYPE_CHECKING:
    from simulations._world import World

__all__ = ["Watch"]

_SAMPLE_EVERY: Final = 10.0
_PAIRS: Final = 20_000  # of cone NATs looked at, at most


class Watch:
    """What only an onlooker sees: who knows whom, and whether they are there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._forgotten: float | None = None
        self._merged_at: float | None = None

    def schedule(self) -> None:
        self._world.heap.at(int(_SAMPLE_EVERY * SECOND), self._sample)

    def _known(self, node: Node) -> list[Node]:
        """The nodes in a node's table."""
        assert node.dht is not None
        by_id = self._world.by_id
        return [other for contact in node.dht.table.contacts() if (other := by_id.get(contact.id)) is not None]

    def _knowing(self) -> list[Node]:
        """The honest nodes that are online and have a table."""
        return [n for n in self._world.honest if n.online and not n.frozen and n.dht is not None]

    def _sample(self) -> None:
        world = self._world
        happenings = world.happenings
        online = [node for node in world.honest if node.online]
        gone = {node.contact.key for node in world.nodes if node.hostile or not node.online}
        entries = live = across = mesh = lonely = 0
        for node in online:
            if node.dht is not None:
                table = node.dht.table
                entries += len(table)
                live += len(table)
                if gone:
                    live -= sum(map(gone.__contains__, table.keys()))
                if happenings.side:
                    known = self._known(node)
                    beyond = sum(happenings.across(node.index, other.index) for other in known)
                    across += beyond
                    lonely += not beyond and not node.frozen
            if node.gossip is not None:
                mesh += len(node.gossip.mesh(world.topic))
        count = max(1, len(online))
        world.measured.samples.append(
            Sample(
                time=world.heap.seconds,
                online=len(online),
                table_mean=entries / count,
                table_live_share=live / entries if entries else math.nan,
                mesh_mean=mesh / count,
                messages=world.heap.messages,
                across_share=across / entries if entries and happenings.side else math.nan,
            )
        )
        if self._merged_at is None and world.heap.seconds >= happenings.healed_at and not lonely:
            self._merged_at = world.heap.seconds
        # Looking at ten thousand tables takes its time: large runs look less often.
        gap = _SAMPLE_EVERY * max(1, len(world.nodes) // 1000)
        world.heap.at(world.heap.now + int(gap * SECOND), self._sample)

    def note_heal(self) -> None:
        """A partition is about to end: how many have forgotten the other side altogether?"""
        happenings = self._world.happenings
        knowing = self._knowing()
        alone = sum(not any(happenings.across(n.index, o.index) for o in self._known(n)) for n in knowing)
        self._forgotten = alone / max(1, len(knowing))
        self._merged_at = None

    def conclude(self) -> dict[str, Any]:
        """The metrics that are read off the network at the end."""
        world = self._world
        found: dict[str, Any] = {}
        if world.scenario.dht:
            found["honest_disconnected"] = sum(
                not any(other.online and not other.hostile for other in self._known(node)) for node in self._knowing()
            )
        if self._forgotten is not None:
            found["forgotten_share"] = self._forgotten
            merged = self._merged_at
            found["merged_seconds"] = merged - world.happenings.healed_at if merged is not None else None
        cones = [node for node in world.honest if node.nat == "cone"]
        if len(cones) > 1:
            random = world.heap.stream("pairs")
            pairs = [(a, b) for i, a in enumerate(cones) for b in cones[:i]]
            pairs = random.sample(pairs, min(_PAIRS, len(pairs)))
            found["cone_pairs_reachable"] = sum(world.can_dial(a, b) for a, b in pairs) / len(pairs)
            punched = [b for a in cones for b in a.links if b < a.index and world.nodes[b].nat == "cone"]
            found["punched_links"] = len(punched)
        return found
