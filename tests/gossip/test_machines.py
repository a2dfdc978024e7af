"""Whatever peers send, in whatever order, the core keeps its bounds and its promises."""

from __future__ import annotations

import math
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from owm.gossip._core import GossipCore, Verdict
from owm.gossip._core_params import GossipParams
from owm.gossip._core_state import Deliver, SendRpc, Validate
from owm.gossip._core_wire import Message, Prune, Rpc, RpcDecoder
from tests.gossip._net import named

TOPICS = ("a", "b", "c")
peers = st.integers(1, 8)
topics = st.sampled_from(TOPICS)
numbers = st.integers(0, 15)
ids = st.lists(numbers.map(lambda n: n.to_bytes(16, "big")), max_size=5).map(tuple)
PARAMS = GossipParams(
    d=3, d_low=2, d_high=5, d_score=1, d_out=1, max_topics_per_peer=2, max_pending=4, max_cached=6, max_seen=12,
    max_idontwant_ids=4, idontwant_bytes=64,
)  # fmt: skip


def message(topic: str, number: int, forged: bool = False) -> Message:
    return Message(topic, number.to_bytes(16, "big") + (b"forged" if forged else b"true") + bytes(60))


class Gossiping(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core: GossipCore[int] = GossipCore(0, PARAMS, Random(0), named)
        self.connected: set[int] = set()
        self.theirs: dict[int, set[str]] = {}
        self.waiting: list[bytes] = []
        self.delivered: dict[bytes, float] = {}

    def take(self, effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, SendRpc):
                assert effect.peer in self.connected, "sent to somebody who is not there"
                assert RpcDecoder().decode(effect.rpc.encode()) == effect.rpc
            elif isinstance(effect, Validate):
                assert effect.message.id not in self.waiting, "one message under validation twice"
                self.waiting.append(effect.message.id)
            elif isinstance(effect, Deliver):
                assert b"forged" not in effect.message.data
                last = self.delivered.get(effect.message.id)
                # With so small a memory an id may come again, but never while it is remembered.
                assert last is None or not self.core_remembers_since(last)
                self.delivered[effect.message.id] = self.now

    def core_remembers_since(self, then: float) -> bool:
        return self.now == then and len(self.delivered) < PARAMS.max_seen // 2

    @rule(peer=peers, outbound=st.booleans(), group=st.sampled_from([None, "x", "y"]))
    def up(self, peer: int, outbound: bool, group: str | None) -> None:
        self.connected.add(peer)
        self.theirs.setdefault(peer, set())
        self.take(self.core.peer_up(peer, self.now, outbound=outbound, group=group))

    @rule(peer=peers)
    def down(self, peer: int) -> None:
        self.connected.discard(peer)
        self.theirs.pop(peer, None)
        self.take(self.core.peer_down(peer, self.now))

    @rule(topic=topics)
    def subscribe(self, topic: str) -> None:
        self.take(self.core.subscribe(topic, self.now))

    @rule(topic=topics)
    def unsubscribe(self, topic: str) -> None:
        self.take(self.core.unsubscribe(topic, self.now))

    @rule(peer=peers, topic=topics, joins=st.booleans())
    def they_subscribe(self, peer: int, topic: str, joins: bool) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(subscriptions=((topic, joins),)), self.now))

    @rule(topic=topics, number=numbers)
    def publish(self, topic: str, number: int) -> None:
        self.take(self.core.publish(message(topic, number), self.now))

    @rule(peer=peers, topic=topics, number=numbers, forged=st.booleans())
    def they_publish(self, peer: int, topic: str, number: int, forged: bool) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(publish=(message(topic, number, forged),)), self.now))

    @rule(data=st.data())
    def judge(self, data: st.DataObject) -> None:
        if not self.waiting:
            return
        chosen = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        pending = self.core._inbox._pending.get(chosen)
        assert pending is not None
        verdict = Verdict.REJECT if b"forged" in pending.message.data else data.draw(
            st.sampled_from([Verdict.ACCEPT, Verdict.IGNORE])
        )  # fmt: skip
        self.take(self.core.validated(chosen, verdict, self.now))

    @rule()
    def forward(self) -> None:
        if self.core.next_forward < float("inf"):
            self.now = max(self.now, self.core.next_forward)
            self.take(self.core.forward(self.now))
            assert self.core.next_forward > self.now

    @rule(peer=peers, topic=topics, found=ids)
    def ihave(self, peer: int, topic: str, found: tuple[bytes, ...]) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(ihave=((topic, found),)), self.now))

    @rule(peer=peers, found=ids)
    def iwant_and_not(self, peer: int, found: tuple[bytes, ...]) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(iwant=found, idontwant=found[:2]), self.now))

    @rule(peer=peers, topic=topics)
    def graft(self, peer: int, topic: str) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(graft=(topic,)), self.now))

    @rule(peer=peers, topic=topics, backoff=st.integers(0, 2**64 - 1))
    def prune(self, peer: int, topic: str, backoff: int) -> None:
        self.take(self.core.receive_rpc(peer, Rpc(prune=(Prune(topic, backoff),)), self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def beat(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.core.heartbeat(self.now))

    @invariant()
    def bounds_hold(self) -> None:
        held = self.core.held()
        assert held["pending"] <= PARAMS.max_pending + len(TOPICS)
        assert held["cached"] <= PARAMS.max_cached
        assert held["seen"] <= PARAMS.max_seen
        assert held["topics"] <= len(TOPICS)
        for peer in self.core._state.peers.values():
            assert len(peer.topics) <= PARAMS.max_topics_per_peer
            assert len(peer.dont_want) <= PARAMS.max_idontwant_ids
            assert math.isfinite(peer.score.value)

    @invariant()
    def meshes_are_of_connected_subscribers(self) -> None:
        for topic in TOPICS:
            mesh = self.core.mesh(topic)
            assert set(mesh) <= self.connected
            assert set(mesh) <= set(self.core.subscribers(topic))
            if topic not in self.core.subscriptions():
                assert not mesh

    @invariant()
    def who_is_outside_a_mesh_is_known(self) -> None:
        for topic in self.core._state.topics.values():
            chosen = topic.mesh if topic.subscribed else topic.fanout
            assert topic.outsiders() == [peer for peer in topic.peers if peer not in chosen]

    @invariant()
    def everything_under_validation_is_asked_for(self) -> None:
        assert set(self.core._inbox._pending) == set(self.waiting)


Gossiping.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestGossiping = Gossiping.TestCase
