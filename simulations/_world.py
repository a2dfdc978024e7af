"""The simulated network: moves messages between cores, lets nodes come and go, runs the workload and judges the run."""

from __future__ import annotations

import hashlib
import math
import zlib
from bisect import bisect_left
from collections.abc import Callable
from random import Random
from typing import Any, Final

from owm.dht._core_server import QueryRefused
from owm.dht._core_types import Contact, DhtParams, Done, Message, SendQuery
from owm.gossip._core import Verdict
from owm.gossip._core_params import GossipParams, ScoreParams
from owm.gossip._core_state import Deliver, Effect, SendRpc, Validate
from owm.gossip._core_wire import Rpc
from simulations._adversaries import BEHAVIOURS, Adversary
from simulations._engine import SECOND, EventHeap
from simulations._happenings import Happenings
from simulations._judge import judge
from simulations._links import Links
from simulations._measure import Measurements
from simulations._node import EPOCH, Node, validate
from simulations._population import converge, graph_links, make_nodes
from simulations._scenario import Scenario
from simulations._watch import Watch
from simulations._workload import Workload

__all__ = ["TOLERANCE", "World"]

_QUERY, _RESPONSE, _RPC = 0, 1, 2
_MEET_EVERY: Final = 20 * SECOND
_REFUSED_AFTER: Final = 50_000  # microseconds until a stopped peer's machine refuses a connection
_SETTLED_AFTER: Final = 3 * SECOND  # a newcomer's first lookups are over, and it knows whom to connect to
TOLERANCE: Final = 2 * 3600.0  #: seconds that a record may come from the future


class World:
    """One run of a scenario with one seed."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.heap = EventHeap(seed)
        self.measured = Measurements()
        self.topic = "/owm/simulated/manifest/00"
        self._chance = self.heap.stream("world")
        self.nodes: list[Node] = make_nodes(scenario, self.heap.stream("population"))
        self.honest = [node for node in self.nodes if not node.hostile]
        regions = _regions(scenario, len(self.nodes), self.heap.stream("regions"))
        self.links = Links(scenario.links, self.heap.stream("links"), regions)
        self._luck = self.heap.stream("nat").randbytes(16)
        self.by_id = {node.contact.id: node for node in self.nodes}
        self._dht = DhtParams(dial_back_groups=0) if scenario.dht else None
        self._client = DhtParams(dial_back_groups=1_000_000) if scenario.dht else None
        self._gossip = GossipParams(score=ScoreParams()) if scenario.gossip else None
        # Bound once, instead of once for each event.
        self._on_rpc, self._on_beat, self._on_forward = self._rpc, self._beat, self._forward
        self._waiting: dict[tuple[int, int], Callable[[Any], None]] = {}
        self.adversary: Adversary | None = None
        hostile = [node for node in self.nodes if node.hostile]
        if hostile:
            self.adversary = BEHAVIOURS[scenario.adversary.kind](self, hostile)
        self.happenings = Happenings(self)
        self.watch = Watch(self)
        self.workload = Workload(self)
        self._populate()

    @property
    def events(self) -> int:
        return self.heap.events

    @property
    def messages(self) -> int:
        return self.heap.messages

    @property
    def trace_hash(self) -> str:
        return self.heap.trace_hash

    # -- the population

    def _populate(self) -> None:
        scenario = self.scenario
        present = self.happenings.populate()
        if scenario.population.converged:
            for node in present:
                self._come_online(node)
            if self._dht is not None:
                converge([node for node in present if not node.hostile], self.heap.stream("tables"), self._dht.k)
            if self._gossip is not None:
                for a, b in graph_links(scenario, len(self.nodes), self.heap.stream("graph")):
                    self.link(self.nodes[a], self.nodes[b])
                    self.link(self.nodes[b], self.nodes[a])  # where only the other can dial
        else:
            gap = scenario.population.join_interval
            for node in present:
                self.heap.at(int(node.index * gap * SECOND), self._join, node)
        if self.adversary is not None:
            self.heap.at(0, self.adversary.start)
        self.watch.schedule()
        self.workload.schedule()

    def _come_online(self, node: Node) -> None:
        heap = self.heap
        random = heap.stream(f"node:{node.index}:{node.version}")
        params = self._dht if node.nat == "public" else self._client
        clock = validate(lambda: EPOCH + heap.seconds + node.skew, TOLERANCE, self.scenario.population.record_max_age)
        node.start(params, self._gossip if not node.hostile else None, random, clock)
        if node.gossip is not None:
            self.gossip_effects(node, node.gossip.subscribe(self.topic, heap.seconds))
            heap.at(heap.now + random.randrange(SECOND), self._on_beat, node, node.version)
            if self._dht is not None and not node.hostile:
                heap.at(heap.now + random.randrange(_MEET_EVERY), self._meet, node, node.version)
        if node.dht is not None and not node.hostile:
            self.dht_effects(node)

    def _join(self, node: Node) -> None:
        """Come online knowing one peer: the first, or any that is online once the first is gone."""
        first = self.nodes[0]
        contact = first if first.online and not first.frozen else self.random_honest(self._chance, but=node)
        self.come_back(node, [contact.contact] if node.index else [])

    def come_back(self, node: Node, known: list[Contact], cache: list[Contact] | None = None) -> None:
        """Come online with an empty table, knowing some peers, and perhaps those of a cache on disk."""
        self._come_online(node)
        if node.dht is not None and (known or cache):
            node.dht.remember(cache or [])
            node.dht.start_bootstrap(known, self.heap.seconds)
            self.dht_effects(node)
        for contact in known:
            self.link(node, self.by_id[contact.id])
        if node.gossip is not None:
            self.heap.at(self.heap.now + _SETTLED_AFTER, self._settled, node, node.version)

    def _settled(self, node: Node, version: int) -> None:
        if node.version == version and node.online:
            self._widen(node)

    def _widen(self, node: Node) -> None:
        """Have gossip links to as many peers as the scenario gives each node, out of its own routing table.

        Without a DHT, how peers are found is not part of the run, and any honest ones will do.
        """
        wanted = self.scenario.population.degree
        if len(node.links) >= wanted:
            return
        if node.dht is not None:
            others = [self.by_id.get(contact.id) for contact in node.dht.table.sample(self._chance, 2 * wanted)]
        else:
            others = [self.random_honest(self._chance, but=node) for _ in range(2 * wanted)]
        for other in others:
            if len(node.links) >= wanted:
                return
            if other is not None:
                self.link(node, other)

    def _meet(self, node: Node, version: int) -> None:
        """The DHT's connections are gossip's too: now and then a new one comes, and an old one goes."""
        if node.version != version or not node.online or node.dht is None:
            return
        self._widen(node)
        for contact in node.dht.table.sample(self._chance, 1):
            other = self.by_id.get(contact.id)
            if other is not None and not node.frozen:
                self.link(node, other)
        if len(node.links) > 2 * self.scenario.population.degree:
            oldest = self.nodes[next(iter(node.links))]
            self.unlink(oldest, node.index)
            self.unlink(node, oldest.index)
        self.heap.at(self.heap.now + _MEET_EVERY, self._meet, node, version)

    def leave(self, node: Node) -> None:
        """Stop without a word; those that were connected notice soon."""
        node.online = False
        for index in list(node.links):
            self.heap.at(self.heap.now + _REFUSED_AFTER, self.unlink, self.nodes[index], node.index)
        node.links = {}

    def unlink(self, node: Node, gone: int) -> None:
        """A node notices that a gossip connection has ended."""
        if gone in node.links:
            del node.links[gone]
            if node.gossip is not None and node.online:
                self.gossip_effects(node, node.gossip.peer_down(gone, self.heap.seconds))
                self._widen(node)

    def random_honest(self, random: Random, but: Node | None = None) -> Node:
        """A random honest node that is online; the first node when there is none."""
        for _ in range(64):
            node = self.honest[random.randrange(len(self.honest))]
            if node.online and not node.frozen and node is not but:
                return node
        return self.nodes[0]

    def link(self, a: Node, b: Node) -> None:
        """Connect two nodes for gossip, where NAT and partitions let them."""
        if b.index in a.links or a is b or not (a.online and b.online) or not self.can_dial(a, b):
            return
        if not self.links.reachable(a.index, b.index) or not self.links.reachable(b.index, a.index):
            return
        now = self.heap.seconds
        a.links[b.index] = b.links[a.index] = None
        for node, other, outbound in ((a, b, True), (b, a, False)):
            if node.gossip is not None:
                group = None if not other.hostile else other.contact.addresses[0]
                self.gossip_effects(node, node.gossip.peer_up(other.index, now, outbound=outbound, group=group))

    def can_dial(self, a: Node, b: Node) -> bool:
        """Whether ``a`` reaches ``b`` in spite of NATs; each pair of cone NATs has its own luck, from the seed."""
        if b.nat == "public":
            return True
        if a.nat == "public":
            return False  # nobody tells it to call us back
        if "symmetric" in (a.nat, b.nat):
            return False
        pair = b"%d:%d" % (min(a.index, b.index), max(a.index, b.index))
        drawn = int.from_bytes(hashlib.blake2b(pair, digest_size=4, key=self._luck).digest(), "big")
        return drawn / 2**32 < self.scenario.population.hole_punch

    # -- messages of the DHT

    def start(self, node: Node, operation: int, done: Callable[[Any], None]) -> None:
        """Have ``done`` called with the result of an operation that was just started in the node's core."""
        self._waiting[node.index, operation] = done
        self.dht_effects(node)

    def dht_effects(self, node: Node) -> None:
        core = node.dht
        if core is None:
            return
        effects = core.drain()
        while effects:
            for effect in effects:
                if isinstance(effect, SendQuery):
                    self.send_query(node, effect.contact, effect.query_id, effect.message)
                elif isinstance(effect, Done):
                    done = self._waiting.pop((node.index, effect.operation), None)
                    if done is not None:
                        done(effect.result)
            effects = core.drain()
        due = core.next_deadline()
        if due < node.tick_at - 1e-9:
            node.tick_at = due
            self.heap.at(int(due * SECOND) + 1, self._tick, node, node.version, due)

    def _tick(self, node: Node, version: int, due: float) -> None:
        if node.version != version or node.tick_at != due:
            return
        node.tick_at = float("inf")
        if not node.online or node.dht is None:
            return
        sent = node.dht.sent + node.dht.failed
        node.dht.tick(self.heap.seconds)
        self.dht_effects(node)
        if node.dht.sent + node.dht.failed != sent:
            self.heap.events += 1

    def send_query(self, node: Node, contact: Contact, query_id: int, message: Message) -> None:
        """Put a query on its way; a peer that is gone or elsewhere refuses at once, one that is frozen says nothing."""
        target = self.by_id.get(contact.id)
        there = target is not None and (contact is target.contact or contact == target.contact)
        if target is None or not there or not target.online or not self.can_dial(node, target):
            self.heap.at(self.heap.now + _REFUSED_AFTER, self._failed, node, node.version, query_id)
            return
        delay = self.links.delay(node.index, target.index)
        if delay >= 0:
            self.heap.at(self.heap.now + delay, self._query, target, node, node.version, query_id, message)

    def _failed(self, node: Node, version: int, query_id: int) -> None:
        if node.version == version and node.online and node.dht is not None:
            node.dht.query_failed(query_id, self.heap.seconds)
            self.dht_effects(node)

    def _query(self, target: Node, node: Node, version: int, query_id: int, message: Message) -> None:
        if not target.online or target.frozen:
            return
        heap = self.heap
        heap.trace(target.index, _QUERY, zlib.crc32(message.key, message.type))
        answer: Message | None = None
        if target.hostile:
            answer = self.adversary.answer(target, message) if self.adversary is not None else None
        elif target.dht is not None:
            try:
                observed = node.contact.addresses[0]
                answer = target.dht.receive_query(node.contact.id, message, heap.seconds, observed)
            except QueryRefused:
                return
            self.dht_effects(target)
        delay = self.links.delay(target.index, node.index)
        if delay >= 0 and query_id >= 0:
            heap.at(heap.now + delay, self._response, node, version, query_id, answer)

    def _response(self, node: Node, version: int, query_id: int, answer: Message | None) -> None:
        if node.version != version or not node.online or node.dht is None or node.hostile:
            return
        if answer is not None:
            digest = zlib.crc32(answer.value or b"", answer.type)
            for contact in answer.closer:
                digest = (digest * 31 + (contact.key & 0xFFFFFFFF)) & 0xFFFFFFFF
            self.heap.trace(node.index, _RESPONSE, digest)
        node.dht.receive_response(query_id, answer, self.heap.seconds)
        self.dht_effects(node)

    # -- messages of gossip

    def gossip_effects(self, node: Node, effects: list[Effect[int]]) -> None:
        core = node.gossip
        if core is None:
            return
        now = self.heap.seconds
        while effects:
            more: list[Effect[int]] = []
            for effect in effects:
                if isinstance(effect, SendRpc):
                    self.send_rpc(node.index, effect.peer, effect.rpc)
                elif isinstance(effect, Validate):
                    message = effect.message
                    good = not message.data.startswith(b"invalid", 16)
                    more += core.validated(message.id, Verdict.ACCEPT if good else Verdict.REJECT, now)
                elif isinstance(effect, Deliver):
                    self.workload.delivered(effect.message, node)
            effects = more
        if core.next_forward < node.forward_at:
            node.forward_at = core.next_forward
            self.heap.at(int(node.forward_at * SECOND) + 1, self._on_forward, node, node.version)

    def _forward(self, node: Node, version: int) -> None:
        if node.version != version or not node.online or node.gossip is None:
            return
        node.forward_at = math.inf
        effects = node.gossip.forward(self.heap.seconds)
        if effects:
            self.heap.events += 1
        self.gossip_effects(node, effects)

    def send_rpc(self, source: int, destination: int, rpc: Rpc) -> None:
        delay = self.links.delay(source, destination)
        if delay >= 0:
            heap = self.heap
            heap.at(heap.now + delay, self._on_rpc, destination, source, rpc)

    def _rpc(self, destination: int, source: int, rpc: Rpc) -> None:
        node = self.nodes[destination]
        core = node.gossip
        if core is None or not node.online or node.frozen or not core.is_connected(source):
            return
        digest = len(rpc.ihave) + 7 * len(rpc.iwant) + 31 * len(rpc.graft) + 127 * len(rpc.prune)
        for message in rpc.publish:
            digest = zlib.crc32(message.data[:16], digest)
        heap = self.heap
        heap.trace(destination, _RPC, digest + 8191 * source)
        effects = core.receive_rpc(source, rpc, heap.seconds)
        if effects:  # most bring nothing new
            self.gossip_effects(node, effects)

    def _beat(self, node: Node, version: int) -> None:
        if node.version != version or not node.online or node.gossip is None:
            return
        heap = self.heap
        effects = node.gossip.heartbeat(heap.seconds)
        if effects:
            heap.events += 1
            self.gossip_effects(node, effects)
        heap.at(heap.now + SECOND, self._on_beat, node, version)

    # -- running and judging

    def run(self, progress: Callable[[float], None] | None = None) -> None:
        """Run to the end of the scenario."""
        self.heap.run(int(self.scenario.duration * SECOND), progress)
        self.workload.conclude()

    def check(self, metrics: dict[str, Any]) -> dict[str, bool]:
        """Each invariant that the scenario asks for, and whether it holds; adds what is read off the network."""
        metrics.update(self.watch.conclude())
        return judge(self.scenario, metrics)


def _regions(scenario: Scenario, count: int, random: Random) -> list[str]:
    shares = scenario.links.regions
    if not shares:
        return []
    names = sorted(shares)
    total = sum(shares.values())
    bounds = [sum(shares[name] for name in names[: i + 1]) / total for i in range(len(names))]
    return [names[min(len(names) - 1, bisect_left(bounds, random.random()))] for _ in range(count)]
