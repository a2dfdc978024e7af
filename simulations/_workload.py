"""What honest nodes do in a run, and what came of it."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any

from owm.gossip._core_wire import Message
from simulations._engine import SECOND
from simulations._measure import Operation
from simulations._node import EPOCH, Node, record_value
from simulations._population import attacked_key

if TYPE_CHECKING:
    from simulations._world import World

__all__ = ["Workload"]


class _Published:
    __slots__ = ("at", "audience", "reached")

    def __init__(self, at: float, audience: set[int]) -> None:
        self.at = at
        self.audience = audience
        self.reached: set[int] = set()


class Workload:
    """Schedules lookups, stores, reads and messages at random times between warm-up and cool-down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random: Random = world.heap.stream("workload")
        self._stored: list[tuple[bytes, bytes]] = []
        self._published: dict[bytes, _Published] = {}
        self._open: dict[tuple[int, int], tuple[str, float]] = {}

    def schedule(self) -> None:
        scenario = self._world.scenario
        plan = scenario.workload
        start, end = plan.warm_up, scenario.duration - plan.cool_down
        if end <= start:
            start, end = 0.0, scenario.duration
        # Reads come after the stores, or there would be nothing to read.
        half = start + (end - start) / 2 if plan.reads else end
        attacked = scenario.adversary.kind == "sybil"
        for number in range(plan.stores if scenario.dht else 0):
            at = start + (half - start) * 0.8 * (number + 0.5) / plan.stores
            self._at(at, self._store, attacked and number == 0)
        for number in range(plan.reads if scenario.dht else 0):
            self._at(self._random.uniform(half, end), self._read, attacked and number % 2 == 0)
        for _ in range(plan.lookups if scenario.dht else 0):
            self._at(self._random.uniform(start, end), self._lookup)
        for _ in range(plan.messages if scenario.gossip else 0):
            self._at(self._random.uniform(start, end), self._publish)

    def _at(self, seconds: float, call: Any, *args: Any) -> None:
        self._world.heap.at(int(seconds * SECOND), call, *args)

    def _node(self) -> Node:
        return self._world.random_honest(self._random)

    def _begin(self, kind: str, node: Node, operation: int, judge: Any) -> None:
        started = self._world.heap.seconds
        self._open[node.index, operation] = (kind, started)

        def done(result: Any) -> None:
            del self._open[node.index, operation]
            self._world.measured.operations.append(
                Operation(
                    kind=kind,
                    started=started,
                    took=self._world.heap.seconds - started,
                    success=judge(result),
                    hops=result.hops,
                    messages=result.queries,
                )
            )

        self._world.start(node, operation, done)

    def _lookup(self) -> None:
        node, target = self._node(), self._node()
        # Clients are in nobody's table: only servers can be found.
        for _ in range(64):
            if target.nat == "public" and target is not node:
                break
            target = self._node()
        core = node.dht
        if core is None or target is node:
            return
        operation = core.start_find_peer(target.contact.id, self._world.heap.seconds)
        self._begin("find_peer", node, operation, lambda r: r.peer is not None and r.peer.id == target.contact.id)

    def _store(self, attacked: bool) -> None:
        node = self._node()
        core = node.dht
        if core is None:
            return
        scenario = self._world.scenario
        key = attacked_key(scenario) if attacked else b"/owm/record/" + self._random.randbytes(16)
        value = record_value(int((EPOCH + self._world.heap.seconds + node.skew) * 1000), key)
        region = scenario.adversary.kind == "sybil"
        operation = core.start_put(key, value, self._world.heap.seconds, own=False, region=region)

        def judge(result: Any) -> bool:
            if result.stored:
                self._stored.append((key, value))
            return bool(result.stored)

        self._begin("put", node, operation, judge)

    def _read(self, attacked: bool) -> None:
        if not self._stored:
            return
        node = self._node()
        core = node.dht
        key, value = self._stored[0] if attacked else self._random.choice(self._stored)
        if core is None:
            return
        region = self._world.scenario.adversary.kind == "sybil"
        operation = core.start_get(key, self._world.heap.seconds, region=region)
        self._begin("get", node, operation, lambda r: r.value == value)

    def _publish(self) -> None:
        world = self._world
        node = self._node()
        if node.gossip is None:
            return
        data = self._random.randbytes(16) + bytes(max(0, world.scenario.workload.message_bytes - 16))
        audience = {n.index for n in world.honest if n.online and not n.frozen and n is not node}
        self._published[data[:16]] = _Published(world.heap.seconds, audience)
        world.gossip_effects(node, node.gossip.publish(Message(world.topic, data), world.heap.seconds))

    def delivered(self, message: Message, node: Node) -> None:
        """A node has accepted a message."""
        published = self._published.get(message.id)
        if published is not None and node.index in published.audience and node.index not in published.reached:
            published.reached.add(node.index)
            self._world.measured.delivery_times.append(self._world.heap.seconds - published.at)

    def conclude(self) -> None:
        """Count what never ended as failed, and judge every message by those that were there all the time."""
        world = self._world
        for kind, started in self._open.values():
            world.measured.operations.append(Operation(kind, started, math.nan, False, 0, 0))
        for published in self._published.values():
            there = {index for index in published.audience if world.nodes[index].online} | published.reached
            share = len(published.reached) / len(there) if there else 1.0
            world.measured.operations.append(
                Operation("publish", published.at, math.nan, share >= 0.99, 0, len(published.reached), share)
            )
