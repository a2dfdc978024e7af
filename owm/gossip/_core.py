"""The GossipSub core: what comes in goes through one of these methods, what is to be done comes out as effects.

It does no I/O, reads no clock and makes no chance of its own, so a peer, a test and the simulator run the same code.
Semantics: gossipsub v1.1 with v1.2's IDONTWANT (https://github.com/libp2p/specs/tree/master/pubsub/gossipsub).
Peers are named by anything hashable; times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random
from typing import Generic, TypeVar

from owm.gossip._core_counters import Counters
from owm.gossip._core_forward import Forwarding
from owm.gossip._core_inbox import Inbox, Verdict, libp2p_message_id
from owm.gossip._core_lazy import LazyGossip
from owm.gossip._core_mesh import Meshes
from owm.gossip._core_params import GossipParams
from owm.gossip._core_state import Effect, Peer, Penalise, Priority, State, Topic
from owm.gossip._core_wire import Message, Rpc

__all__ = ["GossipCore", "Verdict", "libp2p_message_id"]

P = TypeVar("P", bound=Hashable)


class GossipCore(Generic[P]):
    """One peer's part in GossipSub.

    Args:
        self_id: our own name; messages that claim to be by us are dropped.
        params: degrees, times, bounds, weights.
        random: the source of all chance.
        message_id: names a message by its content; raises ValueError for one that cannot be named (it is invalid).
        peer_record: the signed peer record of a peer for peer exchange, where we have one.
    """

    __slots__ = (
        "_forwarding",
        "_inbox",
        "_lazy",
        "_meshes",
        "_message_id",
        "_state",
        "counters",
        "params",
        "self_id",
    )

    def __init__(
        self,
        self_id: P,
        params: GossipParams,
        random: Random,
        message_id: Callable[[Message], bytes] = libp2p_message_id,
        peer_record: Callable[[P], bytes | None] | None = None,
    ) -> None:
        self.self_id = self_id
        self.params = params
        self._message_id = message_id
        self.counters = Counters()
        self._state: State[P] = State(params, random, peer_record)
        self._meshes = Meshes(self._state)
        self._lazy = LazyGossip(self._state)
        self._forwarding = Forwarding(self._state)
        self._inbox = Inbox(self._state, self.counters, self._lazy, self._forwarding, self_id, message_id)

    # -- what we want

    def subscribe(self, topic: str, now: float) -> list[Effect[P]]:
        """Join a topic and tell every peer; idempotent."""
        found = self._state.topic(topic)
        if not found.subscribed:
            rpc = Rpc(subscriptions=((topic, True),))
            for peer in self._state.peers:
                self._state.send(peer, rpc, Priority.OWN)
            self._meshes.join(found, now)
        return self._state.drain()

    def unsubscribe(self, topic: str, now: float) -> list[Effect[P]]:
        """Leave a topic; idempotent."""
        found = self._state.topics.get(topic)
        if found is not None and found.subscribed:
            self._meshes.leave(found, now)
            rpc = Rpc(subscriptions=((topic, False),))
            for peer in self._state.peers:
                self._state.send(peer, rpc, Priority.OWN)
        return self._state.drain()

    def publish(self, message: Message, now: float) -> list[Effect[P]]:
        """Send our own message; one that was seen already is not sent again.

        Raises:
            ValueError: it is too large, or has no id.
        """
        state, params = self._state, self.params
        if len(message.data) > params.max_message:
            raise ValueError(f"a message of {len(message.data)} bytes; at most {params.max_message} are allowed")
        message.id = self._message_id(message)
        if message.id in state.seen:
            return []
        state.seen.add(message.id)
        state.cache.put(message)
        self.counters.published += 1
        topic = state.topic(message.topic)
        peers: dict[P, Peer[P]] = dict(topic.mesh)
        if not topic.subscribed:
            topic.fanout_until = now + params.fanout_ttl
            if len(topic.fanout) < params.d:
                self._meshes.fill_fanout(topic)
            peers.update(topic.fanout)
        low = params.score.publish_threshold
        if params.flood_publish:
            others = [p for p in topic.peers.values() if p.id not in peers and p.score.value >= low]
            room = max(0, params.flood_max - len(peers))
            peers.update((p.id, p) for p in (state.random.sample(others, room) if room < len(others) else others))
        elif topic.subscribed and len(peers) < params.d_low:
            others = [p for p in topic.peers.values() if p.id not in peers and p.score.value >= low]
            missing = min(len(others), params.d - len(peers))
            peers.update((p.id, p) for p in state.random.sample(others, missing))
        state.forget_if_unused(topic)
        rpc = Rpc(publish=(message,))
        for peer in peers.values():
            if message.id not in peer.dont_want:
                state.send(peer.id, rpc, Priority.OWN)
        return state.drain()

    def mark_seen(self, message_id: bytes) -> bool:
        """Note a message that came by another way (a first fetch); False when it was known."""
        if message_id in self._state.seen:
            return False
        self._state.seen.add(message_id)
        return True

    def has_seen(self, message_id: bytes) -> bool:
        return message_id in self._state.seen

    # -- who is there

    def peer_up(
        self, peer: P, now: float, *, outbound: bool = False, idontwant: bool = True, group: Hashable = None
    ) -> list[Effect[P]]:
        """A peer connected. ``group`` is its subnet (P6), None where that means nothing."""
        state = self._state
        if peer not in state.peers:
            state.peers[peer] = Peer(peer, outbound, idontwant, state.scores.add(peer, group, now))
            ours = tuple((name, True) for name, topic in state.topics.items() if topic.subscribed)
            if ours:
                state.send(peer, Rpc(subscriptions=ours), Priority.OWN)
        return state.drain()

    def stream_renewed(self, peer: P, now: float) -> list[Effect[P]]:
        """What we sent last may be lost: tell the peer, first of all, what it must know of us. Nothing is forgotten."""
        if found := self._state.peers.get(peer):
            self._meshes.tell_again(found, now)
        return self._state.drain()

    def set_idontwant(self, peer: P, speaks: bool) -> None:
        """Whether the peer negotiated v1.2, once that is known."""
        if found := self._state.peers.get(peer):
            found.idontwant = speaks

    def peer_down(self, peer: P, now: float) -> list[Effect[P]]:
        """The peer is gone: all that it made us hold is freed, but for a bad score and its back-offs."""
        state = self._state
        gone = state.peers.pop(peer, None)
        if gone is not None:
            for name in gone.topics:
                self._meshes.remove(state.topics[name], gone, now)
            gone.topics.clear()
            state.scores.remove(peer, now)
        return state.drain()

    def set_application_score(self, peer: P, value: float, now: float) -> None:
        """P5: what the application thinks of a peer."""
        if found := self._state.peers.get(peer):
            found.score.application = value
            self._state.scores.refresh(found.score, now)

    # -- what comes in

    def receive_rpc(self, peer: P, rpc: Rpc, now: float) -> list[Effect[P]]:
        """Take what a connected peer sent. Messages come out as :class:`Validate`."""
        state = self._state
        sender = state.peers.get(peer)
        if sender is None:
            return []
        if sender.score.value < self.params.score.graylist_threshold:
            self.counters.graylisted += 1
            state.check_gray(sender, "graylisted")
            return state.drain()
        if rpc.subscriptions:
            self._on_subscriptions(sender, rpc.subscriptions, now)
        for message in rpc.publish:
            self._inbox.receive(sender, message, now)
        if rpc.ihave:
            self._lazy.on_ihave(sender, rpc.ihave, now)
        if rpc.iwant:
            self._lazy.on_iwant(sender, rpc.iwant)
        if rpc.graft:
            self._meshes.on_graft(sender, rpc.graft, now)
        if rpc.prune:
            self._meshes.on_prune(sender, rpc.prune, now)
        if rpc.idontwant:
            self._lazy.on_idontwant(sender, rpc.idontwant)
        return state.drain()

    def broke_protocol(self, peer: P, reason: str, now: float) -> list[Effect[P]]:
        """The peer sent what cannot be an RPC."""
        if sender := self._state.peers.get(peer):
            self._state.misbehaved(sender, reason, now, 2.0)
            self._state.effects.append(Penalise(peer, reason))
        return self._state.drain()

    def may_validate(self, peer: P, now: float) -> bool:
        """Whether one more record of a connected peer, come by another way, may be judged now; it counts (G6)."""
        found = self._state.peers.get(peer)
        return found is not None and self._inbox.spend(found, now)

    def gave_invalid(self, peer: P, topic: str, now: float) -> list[Effect[P]]:
        """The peer gave a bad record by another way: that counts as an invalid message does."""
        if found := self._state.peers.get(peer):
            self._inbox.blame(found, topic, now)
        return self._state.drain()

    def validated(self, message_id: bytes, verdict: Verdict, now: float) -> list[Effect[P]]:
        """The answer to a :class:`Validate`; unknown ids are ignored, so answering twice is harmless (G7)."""
        self._inbox.validated(message_id, verdict, now)
        return self._state.drain()

    def heartbeat(self, now: float) -> list[Effect[P]]:
        """To be called every ``params.heartbeat`` seconds."""
        state = self._state
        state.tick += 1
        state.scores.heartbeat(now)
        self._meshes.maintain(now)
        self._lazy.heartbeat(now)
        state.seen.age(now)
        self._inbox.heartbeat(now)
        return state.drain()

    @property
    def next_forward(self) -> float:
        """When :meth:`forward` is to be called; infinity while nothing is held back."""
        return self._forwarding.due

    def forward(self, now: float) -> list[Effect[P]]:
        """Send on the accepted messages whose moment has come, see ``params.forward_delay``."""
        self._forwarding.release(now)
        return self._state.drain()

    # -- what is known, for statistics, tests and invariants

    def mesh(self, topic: str) -> tuple[P, ...]:
        found = self._state.topics.get(topic)
        return tuple(found.mesh) if found else ()

    def needs(self, peer: P) -> bool:
        """Whether the peer is in a mesh or a fan-out of ours."""
        return any(peer in topic.mesh or peer in topic.fanout for topic in self._state.topics.values())

    def subscribers(self, topic: str) -> tuple[P, ...]:
        """Connected peers that are subscribed."""
        found = self._state.topics.get(topic)
        return tuple(found.peers) if found else ()

    def subscriptions(self) -> tuple[str, ...]:
        return tuple(name for name, topic in self._state.topics.items() if topic.subscribed)

    def is_connected(self, peer: P) -> bool:
        return peer in self._state.peers

    def peers(self) -> tuple[P, ...]:
        return tuple(self._state.peers)

    def score(self, peer: P) -> float:
        """The score as of the last heartbeat or misdeed; 0 for strangers."""
        found = self._state.peers.get(peer)
        return self._state.scores.settle(found.score) if found else 0.0

    def held(self) -> dict[str, int]:
        """How much of what others make us hold is held now."""
        state = self._state
        return {
            "topics": len(state.topics),
            "seen": len(state.seen),
            "cached": len(state.cache),
            "pending": len(self._inbox),
            "forwards": len(self._forwarding),
            "backoffs": sum(len(topic.backoff) for topic in state.topics.values()),
            "mesh_links": sum(len(topic.mesh) for topic in state.topics.values()),
        }

    # -- parts

    def _on_subscriptions(self, peer: Peer[P], subscriptions: tuple[tuple[str, bool], ...], now: float) -> None:
        state, params = self._state, self.params
        refused = False
        for name, joins in subscriptions:
            if not joins:
                if name in peer.topics:
                    peer.topics.discard(name)
                    self._meshes.remove(state.topics[name], peer, now)
            elif name not in peer.topics:
                if len(peer.topics) >= params.max_topics_per_peer or not 0 < len(name) <= params.max_topic_bytes:
                    refused = True
                    continue
                topic = state.topic(name)
                peer.topics.add(topic.name)
                topic.peers[peer.id] = peer
                topic.changed()
                if topic.subscribed and len(topic.mesh) < params.d_low:
                    self._graft_newcomer(topic, peer, now)
        if refused:
            state.misbehaved(peer, "too many topics", now)

    def _graft_newcomer(self, topic: Topic[P], peer: Peer[P], now: float) -> None:
        """A mesh that is too small takes the newcomer at once instead of waiting for the heartbeat."""
        if peer.score.value >= 0 and topic.backoff.get(peer.id, 0.0) <= now:
            self._meshes.graft(topic, peer, now)
            self._state.send(peer.id, Rpc(graft=(topic.name,)), Priority.CONTROL)
