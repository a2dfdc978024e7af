"""What honest nodes do in a run, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from owm.gossip._core_wire import Message
from simulations._engine import SECOND
from simulations._measure import Operation
from simulations._node import EPOCH, Node, record_value
from simulations._population import attacked_key

if TYPE_CHECKING:
    from simulations._world import World

__all__ = ["Workload"]


_DELIVERY_SECONDS: Final = 10.0  # a message must have arrived by then


class _Published:
    __slots__ = ("at", "audience", "reached")

    def __init__(self, at: float, audience: dict[int, int]) -> None:
        self.at = at
        self.audience = audience  #: node: the session that it was in when the message was published
        self.reached: set[int] = set()


class Workload:
    """Schedules lookups, stores, reads and messages at random times between warm-up and cool-down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random: Random = world.heap.stream("workload")
        self._stored: list[tuple[bytes, bytes]] = []
        self._attacked: tuple[bytes, bytes] | None = None  # the record under the attacked key, once it is stored
        self._future: list[tuple[bytes, bytes]] = []  # by nodes whose clocks are far ahead
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
        spread: list[tuple[int, bool, Callable[[], None]]] = [
            (plan.stale_stores, scenario.dht, self._store_stale),
            (plan.far_stores, scenario.dht, self._store_from_the_future),
            (plan.lookups, scenario.dht, self._lookup),
            (plan.messages, scenario.gossip, self._publish),
            (plan.dials, True, self._dial),
        ]
        for count, takes_part, call in spread:
            for _ in range(count if takes_part else 0):
                self._at(self._random.uniform(start, end), call)

    def _at(self, seconds: float, call: Any, *args: Any) -> None:
        self._world.heap.at(int(seconds * SECOND), call, *args)

    def _node(self) -> Node:
        return self._world.random_honest(self._random)

    def _clocked(self) -> Node:
        """A node whose clock is right, as far as the network asks for it."""
        node = self._node()
        while node.far:
            node = self._node()
        return node

    def _begin(self, kind: str, node: Node, operation: int, judge: Callable[[Any], bool], region: bool = False) -> None:
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
                    region=region,
                )
            )

        self._world.start(node, operation, done)

    def _note(self, kind: str, success: bool) -> None:
        """What took no time in the model, or could not even begin."""
        operation = Operation(kind, self._world.heap.seconds, math.nan, success, 0, 0)
        self._world.measured.operations.append(operation)

    def _lookup(self) -> None:
        happenings = self._world.happenings
        node = self._node()
        # Clients are in nobody's table: only servers can be found. So can only those that are not cut off.
        for _ in range(64):
            target = self._node()
            if target.nat == "public" and target is not node and not happenings.apart(node.index, target.index):
                break
        else:
            return
        if node.dht is None:
            return
        sought = target.contact
        kind = "find_peer_across" if happenings.across(node.index, target.index) else "find_peer"
        operation = node.dht.start_find_peer(sought.id, self._world.heap.seconds)
        self._begin(kind, node, operation, lambda r: r.peer == sought)  # the very peer, at its own address

    def _record(self, node: Node, age: float = 0.0) -> tuple[bytes, bytes]:
        """A record that the node issues, by its own clock."""
        key = b"/owm/record/" + self._random.randbytes(16)
        return key, self._value(key, node, age)

    def _value(self, key: bytes, node: Node, age: float = 0.0) -> bytes:
        return record_value(int((EPOCH + self._world.heap.seconds + node.skew - age) * 1000), key)

    def _store(self, attacked: bool) -> None:
        node = self._clocked()
        if node.dht is None:
            return
        key, value = self._record(node)
        if attacked:
            key = attacked_key(self._world.scenario)
            value = self._value(key, node)
        region = self._world.scenario.adversary.kind == "sybil"
        operation = node.dht.start_put(key, value, self._world.heap.seconds, own=False, region=region)

        def judge(result: Any) -> bool:
            if result.stored and attacked:
                self._attacked = (key, value)
            elif result.stored:
                self._stored.append((key, value))
            return bool(result.stored)

        self._begin("put", node, operation, judge, region)

    def _store_stale(self) -> None:
        """Replay a record that is past its age by every clock in the network."""
        node = self._clocked()
        if node.dht is None:
            return
        population = self._world.scenario.population
        furthest = max(population.clock_skew, population.far_skew if population.far_clocks else 0.0)
        key, value = self._record(node, population.record_max_age + population.clock_skew + furthest + 1.0)
        operation = node.dht.start_put(key, value, self._world.heap.seconds, own=False)
        self._begin("put_stale", node, operation, lambda result: not result.stored)

    def _store_from_the_future(self) -> None:
        """A node whose clock is far ahead stores a record; then somebody whose clock is right looks for it."""
        ahead = [node for node in self._world.honest if node.far and node.skew > 0 and node.online]
        if not ahead:
            return
        node = self._random.choice(ahead)
        if node.dht is None:
            return
        key, value = self._record(node)
        operation = node.dht.start_put(key, value, self._world.heap.seconds, own=False)

        def stored(_: Any) -> None:
            self._read_one("get_future", key, lambda result: result.value is None)

        self._world.start(node, operation, stored)

    def _read(self, attacked: bool) -> None:
        if not attacked:
            if self._stored:
                key, value = self._random.choice(self._stored)
                self._read_one("get", key, lambda result: result.value == value)
        elif self._attacked is None:
            self._note("get_attacked", False)  # the store itself has failed
        else:
            key, value = self._attacked
            self._read_one("get_attacked", key, lambda result: result.value == value)

    def _read_one(self, kind: str, key: bytes, judge: Callable[[Any], bool]) -> None:
        node = self._clocked()
        if node.dht is None:
            return
        region = self._world.scenario.adversary.kind == "sybil"
        operation = node.dht.start_get(key, self._world.heap.seconds, region=region)
        self._begin(kind, node, operation, judge, region)

    def _dial(self) -> None:
        """Two random nodes want a connection; where both are behind cone NATs that is a hole punch."""
        a, b = self._node(), self._node()
        if a is b:
            return
        world = self._world
        kind = "punch" if a.nat == b.nat == "cone" else "dial"
        self._note(kind, world.can_dial(a, b) or world.can_dial(b, a))

    def _publish(self) -> None:
        world = self._world
        node = self._node()
        if node.gossip is None or 0 <= world.heap.seconds - world.happenings.healed_at < world.scenario.workload.settle:
            return
        data = self._random.randbytes(16) + bytes(max(0, world.scenario.workload.message_bytes - 16))
        audience = {
            n.index: n.version
            for n in world.honest
            if n.online and not n.frozen and n is not node and world.links.reachable(node.index, n.index)
        }
        self._published[data[:16]] = _Published(world.heap.seconds, audience)
        self._at(world.heap.seconds + _DELIVERY_SECONDS, self._judge_delivery, data[:16])
        world.gossip_effects(node, node.gossip.publish(Message(world.topic, data), world.heap.seconds))

    def delivered(self, message: Message, node: Node) -> None:
        """A node has accepted a message."""
        published = self._published.get(message.id)
        if published is not None and node.index in published.audience and node.index not in published.reached:
            published.reached.add(node.index)
            self._world.measured.delivery_times.append(self._world.heap.seconds - published.at)

    def _judge_delivery(self, message: bytes) -> None:
        """Judge a message by the nodes that were there from its publishing until now, reached or not."""
        world = self._world
        published = self._published.pop(message)
        nodes = world.nodes
        there = {
            index
            for index, session in published.audience.items()
            if nodes[index].online and nodes[index].version == session and not nodes[index].frozen
        }
        reached = len(published.reached & there)
        share = reached / len(there) if there else 1.0
        world.measured.operations.append(Operation("publish", published.at, math.nan, share >= 0.99, 0, reached, share))

    def conclude(self) -> None:
        """Count what never ended as failed, and judge the messages that are still under way."""
        for kind, started in self._open.values():
            self._world.measured.operations.append(Operation(kind, started, math.nan, False, 0, 0))
        for message in list(self._published):
            self._judge_delivery(message)
