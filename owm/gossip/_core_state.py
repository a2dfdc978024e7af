"""What the parts of the GossipSub core share: peers, topics, and the effects that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import IntEnum
from random import Random
from typing import Generic, TypeVar

from owm.gossip._core_cache import MessageCache, SeenCache
from owm.gossip._core_params import GossipParams
from owm.gossip._core_score import PeerScore, Scores
from owm.gossip._core_wire import Message, Prune, Rpc

__all__ = ["Deliver", "Effect", "Exchange", "Peer", "Penalise", "Priority", "SendRpc", "State", "Topic", "Validate"]

P = TypeVar("P", bound=Hashable)


class Priority(IntEnum):
    """What may be dropped first when a peer is slow: the highest number."""

    OWN = 0  #: our own messages and subscriptions
    CONTROL = 1  #: GRAFT and PRUNE
    FORWARD = 2  #: messages of others
    GOSSIP = 3  #: IHAVE, IWANT, IDONTWANT


class SendRpc(Generic[P]):
    """Send ``rpc`` to ``peer``; one Rpc may be in many effects and encodes once."""

    __slots__ = ("peer", "priority", "rpc")

    def __init__(self, peer: P, rpc: Rpc, priority: Priority) -> None:
        self.peer = peer
        self.rpc = rpc
        self.priority = priority


class Validate(Generic[P]):
    """Judge a message and call ``validated``; it came from ``peer``."""

    __slots__ = ("message", "peer")

    def __init__(self, peer: P, message: Message) -> None:
        self.peer = peer
        self.message = message


class Deliver(Generic[P]):
    """Hand an accepted message to the topic's subscribers."""

    __slots__ = ("message", "peer")

    def __init__(self, peer: P, message: Message) -> None:
        self.peer = peer
        self.message = message


class Penalise(Generic[P]):
    """A peer's score fell below the graylist threshold, or it broke the protocol."""

    __slots__ = ("peer", "reason")

    def __init__(self, peer: P, reason: str) -> None:
        self.peer = peer
        self.reason = reason


class Exchange(Generic[P]):
    """A well-behaved peer told us of others: pairs of peer id and signed peer record, both unchecked."""

    __slots__ = ("peers", "source")

    def __init__(self, source: P, peers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.source = source
        self.peers = peers


Effect = SendRpc[P] | Validate[P] | Deliver[P] | Penalise[P] | Exchange[P]


class Peer(Generic[P]):
    """A connected peer."""

    __slots__ = (
        "asked",
        "budget",
        "dont_want",
        "grayed",
        "id",
        "idontwant",
        "ihaves",
        "outbound",
        "score",
        "served",
        "tick",
        "topics",
    )

    def __init__(self, id_: P, outbound: bool, idontwant: bool, score: PeerScore) -> None:
        self.id = id_
        self.outbound = outbound  #: we dialled it: harder for an attacker to arrange
        self.idontwant = idontwant  #: it speaks v1.2
        self.score = score
        self.topics: set[str] = set()
        self.tick = 0  # the heartbeat that these counters are of
        self.ihaves = 0  # IHAVE messages taken since the heartbeat
        self.asked = 0  # ids asked for since the heartbeat
        self.served = 0  # ids answered since the heartbeat
        self.budget = float("-inf")  # GCRA: when the validation budget is whole again
        self.dont_want: dict[bytes, int] = {}  # id -> heartbeat at which it is forgotten
        self.grayed = False

    def count_in(self, tick: int) -> None:
        """Start the counters anew if there was a heartbeat since the last look: most peers ask for nothing in one."""
        if self.tick != tick:
            self.tick = tick
            self.ihaves = self.asked = self.served = 0


class Topic(Generic[P]):
    """A topic that we or a peer know of. Peers are kept in dicts for their order: runs must repeat."""

    __slots__ = (
        "_outsiders",
        "backoff",
        "fanout",
        "fanout_until",
        "mended",
        "mesh",
        "name",
        "peers",
        "subscribed",
        "unsaid",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.subscribed = False
        self.mended = False  #: nothing has changed since the mesh was last found to be in order
        self.peers: dict[P, Peer[P]] = {}  #: that are subscribed
        self.mesh: dict[P, Peer[P]] = {}
        self.fanout: dict[P, Peer[P]] = {}
        self.fanout_until = 0.0
        self.backoff: dict[P, float] = {}  #: until when not to graft whom
        self.unsaid: dict[P, None] = {}  #: of them, who pruned us without a word of a back-off and may not know any
        self._outsiders: list[P] | None = None

    def outsiders(self) -> list[P]:
        """Who is told of what we have, for it does not get it from us: not to be changed. Asked for each heartbeat."""
        if not self.subscribed:
            return [peer for peer in self.peers if peer not in self.fanout]
        if self._outsiders is None:
            self._outsiders = [peer for peer in self.peers if peer not in self.mesh]
        return self._outsiders

    def changed(self) -> None:
        """Somebody has come to or left the topic or the mesh: what was found out about them is void."""
        self.mended = False
        self._outsiders = None


class State(Generic[P]):
    """The data of one core. Only the core's parts write to it."""

    __slots__ = (
        "cache",
        "declined",
        "effects",
        "params",
        "peer_record",
        "peers",
        "random",
        "scores",
        "seen",
        "tick",
        "topics",
    )

    def __init__(self, params: GossipParams, random: Random, peer_record: Callable[[P], bytes | None] | None) -> None:
        self.params = params
        self.random = random
        self.peer_record = peer_record
        self.peers: dict[P, Peer[P]] = {}
        self.topics: dict[str, Topic[P]] = {}
        self.scores: Scores[P] = Scores(params.score)
        self.seen = SeenCache(params.seen_ttl, params.max_seen)
        self.cache = MessageCache(params.history, params.max_cached)
        self.declined: dict[P, Peer[P]] = {}  # who does not want some message
        self.effects: list[Effect[P]] = []
        self.tick = 0

    def topic(self, name: str) -> Topic[P]:
        found = self.topics.get(name)
        if found is None:
            found = self.topics[name] = Topic(name)
        return found

    def forget_if_unused(self, topic: Topic[P]) -> None:
        if not (topic.subscribed or topic.peers or topic.fanout or topic.backoff):
            self.topics.pop(topic.name, None)

    def send(self, peer: P, rpc: Rpc, priority: Priority) -> None:
        self.effects.append(SendRpc(peer, rpc, priority))

    def send_meshing(self, peer: P, grafts: list[str], prunes: list[Prune]) -> None:
        """GRAFTs and PRUNEs, in as few RPCs as their size allows: the records of others in them can be large."""
        packs: list[list[Prune]] = [[]]
        size = 0
        for prune in prunes:
            size += len(prune.topic) + 32 + sum(len(name) + len(record) + 16 for name, record in prune.peers)
            if packs[-1] and size > self.params.max_rpc // 2:
                packs.append([])
                size = 0
            packs[-1].append(prune)
        for pack in packs:
            if pack or grafts:
                self.send(peer, Rpc(graft=tuple(grafts), prune=tuple(pack)), Priority.CONTROL)
            grafts = []

    def misbehaved(self, peer: Peer[P], reason: str, now: float, amount: float = 1.0) -> None:
        """Count a broken rule (P7)."""
        self.scores.misbehaved(peer.score, amount, now)
        self.check_gray(peer, reason)

    def check_gray(self, peer: Peer[P], reason: str) -> None:
        """Tell once when a peer falls below the graylist threshold."""
        if peer.score.value >= self.params.score.graylist_threshold:
            peer.grayed = False
        elif not peer.grayed:
            peer.grayed = True
            self.effects.append(Penalise(peer.id, reason))

    def drain(self) -> list[Effect[P]]:
        """What is to be done since the last call."""
        effects = self.effects
        if not effects:
            return []  # as after most messages
        self.effects = []
        return effects
