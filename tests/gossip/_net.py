"""Many gossip cores in virtual time, without trio: messages take a while, heartbeats come, attackers do as told."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable
from random import Random

from owm.gossip._core import GossipCore, Verdict
from owm.gossip._core_params import GossipParams
from owm.gossip._core_state import Deliver, Effect, Penalise, SendRpc, Validate
from owm.gossip._core_wire import Message, Rpc

TOPIC = "news"


def message(number: int, size: int = 300, topic: str = TOPIC) -> Message:
    return Message(topic, number.to_bytes(16, "big") + bytes(size - 16))


def named(found: Message) -> bytes:
    """Tests name messages by their first 16 bytes."""
    return found.data[:16]


class Net:
    """``cores`` by number; ``filters`` change or swallow what a node sends; ``judge`` validates."""

    def __init__(self, seed: int = 1, latency: float = 0.04) -> None:
        self.random = Random(seed)
        self.latency = latency
        self.now = 0.0
        self.cores: dict[int, GossipCore[int]] = {}
        self.links: dict[int, dict[int, None]] = {}
        self.filters: dict[int, Callable[[int, Rpc], Rpc | None]] = {}
        self.judge: Callable[[int, Message], Verdict] = lambda _node, _message: Verdict.ACCEPT
        self.delivered: dict[bytes, dict[int, float]] = {}
        self.penalised: list[tuple[int, int, str]] = []
        self.sent = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, node: int, params: GossipParams | None = None) -> GossipCore[int]:
        core = GossipCore(node, params or GossipParams(), Random(self.random.random()), named)
        self.cores[node], self.links[node] = core, {}
        self.at(self.now + self.random.uniform(0, 1), lambda: self._beat(node))
        return core

    def connect(self, a: int, b: int, group: Hashable = None) -> None:
        """``a`` dials ``b``; ``group`` is the subnet that b sees it come from."""
        if b in self.links[a]:
            return
        self.links[a][b] = self.links[b][a] = None
        self.run_effects(a, self.cores[a].peer_up(b, self.now, outbound=True))
        self.run_effects(b, self.cores[b].peer_up(a, self.now, group=group))

    def disconnect(self, a: int, b: int) -> None:
        del self.links[a][b], self.links[b][a]
        self.run_effects(a, self.cores[a].peer_down(b, self.now))
        self.run_effects(b, self.cores[b].peer_down(a, self.now))

    def subscribe(self, node: int, topic: str = TOPIC) -> None:
        self.run_effects(node, self.cores[node].subscribe(topic, self.now))

    def publish(self, node: int, found: Message) -> None:
        self.delivered.setdefault(named(found), {})[node] = self.now
        self.run_effects(node, self.cores[node].publish(found, self.now))

    def send(self, source: int, target: int, rpc: Rpc) -> None:
        """Put an RPC on the wire, whatever the source's core thinks; takes the latency."""
        data = rpc.encode()
        self.sent += len(data)
        from owm.gossip._core_wire import RpcDecoder

        def arrive() -> None:
            if source in self.links.get(target, {}):
                self.run_effects(target, self.cores[target].receive_rpc(source, RpcDecoder().decode(data), self.now))

        self.at(self.now + self.latency * self.random.uniform(0.8, 1.2), arrive)

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._order), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def run_effects(self, node: int, effects: Iterable[Effect[int]]) -> None:
        self._run_effects(node, effects)
        if self.cores[node].next_forward < float("inf"):
            self.at(self.cores[node].next_forward, lambda: self._forward(node))

    def _forward(self, node: int) -> None:
        if self.cores[node].next_forward <= self.now:
            self.run_effects(node, self.cores[node].forward(self.now))

    def _run_effects(self, node: int, effects: Iterable[Effect[int]]) -> None:
        for effect in effects:
            if isinstance(effect, SendRpc):
                keep = self.filters.get(node)
                rpc = effect.rpc if keep is None else keep(effect.peer, effect.rpc)
                if rpc is not None:
                    self.send(node, effect.peer, rpc)
            elif isinstance(effect, Validate):
                verdict = self.judge(node, effect.message)
                self._run_effects(node, self.cores[node].validated(effect.message.id, verdict, self.now))
            elif isinstance(effect, Deliver):
                first = self.delivered.setdefault(effect.message.id, {})
                assert node not in first, "delivered twice"
                first[node] = self.now
            elif isinstance(effect, Penalise):
                self.penalised.append((node, effect.peer, effect.reason))

    def _beat(self, node: int) -> None:
        core = self.cores[node]
        self.run_effects(node, core.heartbeat(self.now))
        self.at(self.now + core.params.heartbeat, lambda: self._beat(node))

    def reached(self, found: Message, nodes: Iterable[int]) -> float:
        """The share of the nodes that have the message."""
        have, wanted = self.delivered[named(found)], list(nodes)
        return sum(node in have for node in wanted) / len(wanted)


def honest_net(count: int = 60, degree: int = 6, seed: int = 1, params: GossipParams | None = None) -> Net:
    """Nodes that each dialled ``degree`` random others, all subscribed."""
    net = Net(seed)
    for node in range(count):
        net.add(node, params)
    for node in range(count):
        for other in net.random.sample([n for n in range(count) if n != node], degree):
            net.connect(node, other, group=f"net{node}")
    for node in range(count):
        net.subscribe(node)
    return net


def silent(_peer: int, rpc: Rpc) -> Rpc | None:
    """Takes part in meshes and passes no message on: what eclipse attackers do."""
    return Rpc(subscriptions=rpc.subscriptions, graft=rpc.graft, prune=rpc.prune)
