"""The GossipSub core: what comes in goes through one of these methods, what is to be done comes out as effects.

It does no I/O, reads no clock and makes no chance of its own, so a peer, a test and the simulator run the same code.
Semantics: gossipsub v1.1 with v1.2's IDONTWANT (https://github.com/libp2p/specs/tree/master/pubsub/gossipsub).
Peers are named by anything hashable; times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from hashlib import sha256
from random import Random
from typing import Final, Generic, TypeVar

from owm.gossip._core_cache import SeenCache
from owm.gossip._core_counters import Counters
from owm.gossip._core_forward import Forwarding
from owm.gossip._core_lazy import LazyGossip
from owm.gossip._core_mesh import Meshes
from owm.gossip._core_params import GossipParams, SignaturePolicy
from owm.gossip._core_state import Deliver, Effect, Peer, Penalise, Priority, State, Topic, Validate
from owm.gossip._core_wire import Message, Rpc, encode_message

__all__ = ["GossipCore", "Verdict", "libp2p_message_id"]

P = TypeVar("P", bound=Hashable)

_SEQNO_BYTES: Final = 8
_MAX_VARIANTS: Final = 8  # other bytes with the id of a message under validation that are kept for their turn


class Verdict(Enum):
    """What validation found; the names of libp2p."""

    ACCEPT = "accept"
    IGNORE = "ignore"  #: well-formed, but not to be passed on; nobody is blamed
    REJECT = "reject"  #: the message itself is bad: who passes it on is blamed


def libp2p_message_id(message: Message) -> bytes:
    """libp2p's default: author and sequence number; raises ValueError without them."""
    if message.sender is None or message.seqno is None:
        raise ValueError("a message without author or sequence number")
    return message.sender + message.seqno


class _Pending(Generic[P]):
    """A message under validation."""

    __slots__ = ("copies", "message", "peer", "variants")

    def __init__(self, peer: Peer[P], message: Message) -> None:
        self.peer = peer
        self.message = message
        self.copies: list[Peer[P]] = []  # who else sent the same bytes meanwhile
        self.variants: list[tuple[Peer[P], Message]] = []  # other bytes that claim the same id

    def may_vary(self, peer: Peer[P]) -> bool:
        """Whether other bytes of ``peer`` are kept: one version each, or a single forger would fill all places."""
        if peer is self.peer or len(self.variants) >= _MAX_VARIANTS:
            return False
        return all(other is not peer for other, _ in self.variants)


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
        "_lazy",
        "_meshes",
        "_message_id",
        "_pending",
        "_rejected",
        "_state",
        "_validated_at",
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
        self._state: State[P] = State(params, random, peer_record)
        self._meshes = Meshes(self._state)
        self._lazy = LazyGossip(self._state)
        self._forwarding = Forwarding(self._state)
        self._pending: dict[bytes, _Pending[P]] = {}
        self._rejected = SeenCache(params.seen_ttl, 4096)  # digests of bytes that were found invalid
        self._validated_at: dict[bytes, float] = {}  # only for topics that score mesh deliveries (P3)
        self.counters = Counters()

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
        low = params.score.publish_threshold
        if params.flood_publish:
            others = [p for p in topic.peers.values() if p.id not in peers and p.score.value >= low]
            room = max(0, params.flood_max - len(peers))
            peers.update((p.id, p) for p in (state.random.sample(others, room) if room < len(others) else others))
        elif topic.subscribed and len(peers) < params.d_low:
            others = [p for p in topic.peers.values() if p.id not in peers and p.score.value >= low]
            missing = min(len(others), params.d - len(peers))
            peers.update((p.id, p) for p in state.random.sample(others, missing))
        if not topic.subscribed:
            topic.fanout_until = now + params.fanout_ttl
            if len(topic.fanout) < params.d:
                self._meshes.fill_fanout(topic)
            peers.update(topic.fanout)
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
            self._on_message(sender, message, now)
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
        return found is not None and self._spend(found, now)

    def gave_invalid(self, peer: P, topic: str, now: float) -> list[Effect[P]]:
        """The peer gave a bad record by another way: that counts as an invalid message does."""
        if found := self._state.peers.get(peer):
            self._blame_invalid(found, topic, now)
        return self._state.drain()

    def validated(self, message_id: bytes, verdict: Verdict, now: float) -> list[Effect[P]]:
        """The answer to a :class:`Validate`; unknown ids are ignored, so answering twice is harmless (G7)."""
        state = self._state
        pending = self._pending.pop(message_id, None)
        if pending is None:
            return []
        message, name = pending.message, pending.message.topic
        if verdict is Verdict.ACCEPT:
            self._accepted(pending, now)
        elif verdict is Verdict.IGNORE:
            self.counters.ignored += 1
        else:
            self.counters.rejected += 1
            self._rejected.add(_digest(message))
            for peer in (pending.peer, *pending.copies):
                self._blame_invalid(peer, name, now)
            # Whoever forges bytes under an id must not keep the true message out (G10).
            state.seen.discard(message_id)
            if pending.variants:
                peer, variant = pending.variants.pop(0)
                self._start_validation(peer, variant).variants = pending.variants
        return state.drain()

    def heartbeat(self, now: float) -> list[Effect[P]]:
        """To be called every ``params.heartbeat`` seconds."""
        state = self._state
        state.tick += 1
        state.scores.heartbeat(now)
        self._meshes.maintain(now)
        self._lazy.heartbeat(now)
        state.seen.age(now)
        self._rejected.age(now)
        if self._validated_at:
            self._validated_at = {i: t for i, t in self._validated_at.items() if now - t < self.params.heartbeat}
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

    def subscribers(self, topic: str) -> tuple[P, ...]:
        """Connected peers that are subscribed."""
        found = self._state.topics.get(topic)
        return tuple(found.peers) if found else ()

    def subscriptions(self) -> tuple[str, ...]:
        return tuple(name for name, topic in self._state.topics.items() if topic.subscribed)

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
            "pending": len(self._pending),
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
                topic.mended = False
                if topic.subscribed and len(topic.mesh) < params.d_low:
                    self._graft_newcomer(topic, peer, now)
        if refused:
            state.misbehaved(peer, "too many topics", now)

    def _graft_newcomer(self, topic: Topic[P], peer: Peer[P], now: float) -> None:
        """A mesh that is too small takes the newcomer at once instead of waiting for the heartbeat."""
        if peer.score.value >= 0 and topic.backoff.get(peer.id, 0.0) <= now:
            self._meshes.graft(topic, peer, now)
            self._state.send(peer.id, Rpc(graft=(topic.name,)), Priority.CONTROL)

    def _on_message(self, peer: Peer[P], message: Message, now: float) -> None:
        state = self._state
        topic = state.topics.get(message.topic)
        if topic is None or not topic.subscribed:
            return
        if len(message.data) > self.params.max_message or not self._is_signed_as_agreed(message):
            self.counters.rejected += 1
            self._blame_invalid(peer, topic.name, now)
            return
        message.topic = topic.name
        try:
            id_ = message.id = self._message_id(message)
        except ValueError:
            self.counters.rejected += 1
            self._blame_invalid(peer, topic.name, now)
            return
        if message.sender is not None and message.sender == self.self_id:
            return
        self._lazy.delivered(id_)
        if id_ in state.seen:
            self._on_copy(peer, message, now)
        elif len(self._rejected) and _digest(message) in self._rejected:
            self._blame_invalid(peer, topic.name, now)
        elif len(self._pending) >= self.params.max_pending or not self._spend(peer, now):
            self.counters.over_budget += 1
        else:
            self._start_validation(peer, message)

    def _on_copy(self, peer: Peer[P], message: Message, now: float) -> None:
        self.counters.duplicates += 1
        pending = self._pending.get(message.id)
        if pending is not None:
            if pending.message == message:
                if peer is not pending.peer and peer not in pending.copies:
                    pending.copies.append(peer)
            elif pending.may_vary(peer) and self._spend(peer, now):
                pending.variants.append((peer, message))
            return
        self._forwarding.copy(peer, message.id)
        validated = self._validated_at.get(message.id)
        if validated is not None:
            window = self._state.scores.topic(peer.score, message.topic).params.mesh_deliveries_window
            if now - validated <= window:
                self._state.scores.mesh_delivery(peer.score, message.topic)

    def _start_validation(self, peer: Peer[P], message: Message) -> _Pending[P]:
        state, params = self._state, self.params
        state.seen.add(message.id)
        pending = self._pending[message.id] = _Pending(peer, message)
        state.effects.append(Validate(peer.id, message))
        if len(message.data) >= params.idontwant_bytes:
            rpc = Rpc(idontwant=(message.id,))
            for other in state.topics[message.topic].mesh.values():
                if other is not peer and other.idontwant:
                    state.send(other.id, rpc, Priority.GOSSIP)
        return pending

    def _accepted(self, pending: _Pending[P], now: float) -> None:
        state, message, source = self._state, pending.message, pending.peer
        self.counters.delivered += 1
        state.cache.put(message)
        state.scores.first_delivery(source.score, message.topic)
        for peer in pending.copies:
            state.scores.mesh_delivery(peer.score, message.topic)
        topic = state.topics.get(message.topic)
        if topic is None:
            return
        if state.scores.topic(source.score, message.topic).params.mesh_deliveries_weight:
            self._validated_at[message.id] = now
        self._forwarding.add(message, [source, *pending.copies], now)
        state.effects.append(Deliver(source.id, message))

    def _blame_invalid(self, peer: Peer[P], topic: str, now: float) -> None:
        params = self.params
        if self._state.peers.get(peer.id) is not peer:
            return  # it left meanwhile
        self._state.scores.invalid(peer.score, topic, now)
        peer.budget = max(peer.budget, now) + params.invalid_cost / params.validations
        self._state.check_gray(peer, "invalid messages")

    def _spend(self, peer: Peer[P], now: float) -> bool:
        """Take one validation out of the peer's budget (GCRA); False when it is empty (G6)."""
        params = self.params
        full = max(peer.budget, now)
        if full - now > (params.validations_burst - 1) / params.validations:
            return False
        peer.budget = full + 1.0 / params.validations
        return True

    def _is_signed_as_agreed(self, message: Message) -> bool:
        fields = (message.sender, message.seqno, message.signature)
        if self.params.policy is SignaturePolicy.STRICT_SIGN:
            # The number is part of the id, which we announce to everybody: its author must not choose how long that is.
            return None not in fields and len(message.seqno or b"") == _SEQNO_BYTES
        return fields == (None, None, None) and message.key is None


def _digest(message: Message) -> bytes:
    """Of all fields: one that a forger changes must not make the true message look like the forgery."""
    return sha256(encode_message(message)).digest()
