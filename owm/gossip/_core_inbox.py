"""Messages on their way in: named, validated once however many bring them, accepted or held against who sent them.

::

    new --(budget left)--> under validation --ACCEPT--> seen, delivered, forwarded
                                            --IGNORE--> seen
                                            --REJECT--> blamed; other bytes with the same id get their turn
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from hashlib import sha256
from typing import Final, Generic, TypeVar

from owm.gossip._core_cache import SeenCache
from owm.gossip._core_counters import Counters
from owm.gossip._core_forward import Forwarding
from owm.gossip._core_lazy import LazyGossip
from owm.gossip._core_params import SignaturePolicy
from owm.gossip._core_state import Deliver, Peer, Priority, State, Validate
from owm.gossip._core_wire import Message, Rpc, encode_message

__all__ = ["Inbox", "Verdict", "libp2p_message_id"]

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


class Inbox(Generic[P]):
    """What is under validation, what was found invalid lately, and what each peer may have us validate (G6)."""

    __slots__ = (
        "_counters",
        "_forwarding",
        "_lazy",
        "_message_id",
        "_params",
        "_pending",
        "_rejected",
        "_self_id",
        "_state",
        "_validated_at",
    )

    def __init__(
        self,
        state: State[P],
        counters: Counters,
        lazy: LazyGossip[P],
        forwarding: Forwarding[P],
        self_id: P,
        message_id: Callable[[Message], bytes],
    ) -> None:
        self._state = state
        self._params = state.params
        self._counters = counters
        self._lazy = lazy
        self._forwarding = forwarding
        self._self_id = self_id
        self._message_id = message_id
        self._pending: dict[bytes, _Pending[P]] = {}
        self._rejected = SeenCache(state.params.seen_ttl, 4096)  # digests of bytes that were found invalid
        self._validated_at: dict[bytes, float] = {}  # only for topics that score mesh deliveries (P3)

    def __len__(self) -> int:
        return len(self._pending)

    def heartbeat(self, now: float) -> None:
        self._rejected.age(now)
        if self._validated_at:
            self._validated_at = {i: t for i, t in self._validated_at.items() if now - t < self._params.heartbeat}

    def validated(self, message_id: bytes, verdict: Verdict, now: float) -> None:
        """The answer to a :class:`Validate`; unknown ids are ignored, so answering twice is harmless (G7)."""
        state = self._state
        pending = self._pending.pop(message_id, None)
        if pending is None:
            return
        message, name = pending.message, pending.message.topic
        if verdict is Verdict.ACCEPT:
            self._accepted(pending, now)
        elif verdict is Verdict.IGNORE:
            self._counters.ignored += 1
        else:
            self._counters.rejected += 1
            self._rejected.add(_digest(message))
            for peer in (pending.peer, *pending.copies):
                self.blame(peer, name, now)
            # Whoever forges bytes under an id must not keep the true message out (G10).
            state.seen.discard(message_id)
            if pending.variants:
                peer, variant = pending.variants.pop(0)
                self._start_validation(peer, variant).variants = pending.variants

    def receive(self, peer: Peer[P], message: Message, now: float) -> None:
        """Take one message: a new one comes out as :class:`Validate`, a copy is counted, a bad one is blamed."""
        state = self._state
        topic = state.topics.get(message.topic)
        if topic is None or not topic.subscribed:
            return
        if len(message.data) > self._params.max_message or not self._is_signed_as_agreed(message):
            self._counters.rejected += 1
            self.blame(peer, topic.name, now)
            return
        message.topic = topic.name
        try:
            id_ = message.id = message.id or self._message_id(message)
        except ValueError:
            self._counters.rejected += 1
            self.blame(peer, topic.name, now)
            return
        if message.sender is not None and message.sender == self._self_id:
            return
        self._lazy.delivered(id_)
        if id_ in state.seen:
            self._on_copy(peer, message, now)
        elif len(self._rejected) and _digest(message) in self._rejected:
            self.blame(peer, topic.name, now)
        elif len(self._pending) >= self._params.max_pending or not self.spend(peer, now):
            self._counters.over_budget += 1
        else:
            self._start_validation(peer, message)

    def blame(self, peer: Peer[P], topic: str, now: float) -> None:
        """Hold an invalid message against the peer (P4); it costs its validation budget too."""
        params = self._params
        if self._state.peers.get(peer.id) is not peer:
            return  # it left meanwhile
        self._state.scores.invalid(peer.score, topic, now)
        peer.budget = max(peer.budget, now) + params.invalid_cost / params.validations
        self._state.check_gray(peer, "invalid messages")

    def spend(self, peer: Peer[P], now: float) -> bool:
        """Take one validation out of the peer's budget (GCRA); False when it is empty (G6)."""
        params = self._params
        full = max(peer.budget, now)
        if full - now > (params.validations_burst - 1) / params.validations:
            return False
        peer.budget = full + 1.0 / params.validations
        return True

    def _on_copy(self, peer: Peer[P], message: Message, now: float) -> None:
        self._counters.duplicates += 1
        pending = self._pending.get(message.id)
        if pending is not None:
            if pending.message == message:
                if peer is not pending.peer and peer not in pending.copies:
                    pending.copies.append(peer)
            elif pending.may_vary(peer) and self.spend(peer, now):
                pending.variants.append((peer, message))
            return
        self._forwarding.copy(peer.id, message.id)
        validated = self._validated_at.get(message.id)
        if validated is not None:
            window = self._state.scores.topic(peer.score, message.topic).params.mesh_deliveries_window
            if now - validated <= window:
                self._state.scores.mesh_delivery(peer.score, message.topic)

    def _start_validation(self, peer: Peer[P], message: Message) -> _Pending[P]:
        state, params = self._state, self._params
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
        self._counters.delivered += 1
        state.cache.put(message)
        state.scores.first_delivery(source.score, message.topic)
        for peer in pending.copies:
            state.scores.mesh_delivery(peer.score, message.topic)
        topic = state.topics.get(message.topic)
        if topic is None:
            return
        if state.scores.topic(source.score, message.topic).params.mesh_deliveries_weight:
            self._validated_at[message.id] = now
        self._forwarding.add(message, [source.id, *[peer.id for peer in pending.copies]], now)
        state.effects.append(Deliver(source.id, message))

    def _is_signed_as_agreed(self, message: Message) -> bool:
        if self._params.policy is SignaturePolicy.STRICT_SIGN:
            if message.sender is None or message.seqno is None or message.signature is None:
                return False
            # The number is part of the id, which we announce to everybody: its author must not choose how long that is.
            return len(message.seqno) == _SEQNO_BYTES
        return message.sender is None and message.seqno is None and message.signature is None and message.key is None


def _digest(message: Message) -> bytes:
    """Of all fields: one that a forger changes must not make the true message look like the forgery."""
    return sha256(encode_message(message)).digest()
