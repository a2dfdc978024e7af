"""What can be set about gossip: mesh, scores and bounds. Names and defaults follow the GossipSub v1.1 specification.

https://github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.1.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["GossipParams", "ScoreParams", "SignaturePolicy", "TopicScoreParams"]


class SignaturePolicy(Enum):
    """Who vouches for a message."""

    STRICT_SIGN = "strict-sign"  #: author, sequence number and signature in every message, as libp2p has it
    STRICT_NO_SIGN = "strict-no-sign"  #: none of them: the data is a signed record


@dataclass(frozen=True)
class TopicScoreParams:
    """How behaviour on one topic counts. A weight of 0 switches its component off; decays are per heartbeat."""

    weight: float = 1.0
    time_in_mesh_weight: float = 0.01  #: P1
    time_in_mesh_quantum: float = 1.0  #: seconds
    time_in_mesh_cap: float = 1000.0
    first_deliveries_weight: float = 0.5  #: P2
    first_deliveries_decay: float = 0.998
    first_deliveries_cap: float = 100.0
    mesh_deliveries_weight: float = 0.0  #: P3, negative when used: needs a topic whose rate is known
    mesh_deliveries_decay: float = 0.98
    mesh_deliveries_cap: float = 100.0
    mesh_deliveries_threshold: float = 5.0
    mesh_deliveries_window: float = 0.05  #: seconds after validation within which a copy still counts
    mesh_deliveries_activation: float = 30.0  #: seconds in the mesh before a deficit counts
    mesh_failure_weight: float = 0.0  #: P3b, negative when used
    mesh_failure_decay: float = 0.98
    invalid_weight: float = -10.0  #: P4
    invalid_decay: float = 0.995


@dataclass(frozen=True)
class ScoreParams:
    """How peers are scored, and what a score leads to."""

    topic: TopicScoreParams = TopicScoreParams()
    topics: dict[str, TopicScoreParams] = field(default_factory=dict)  #: exceptions, by topic
    topic_cap: float = 100.0  #: what good conduct on all topics together can earn
    application_weight: float = 1.0  #: P5
    colocation_weight: float = -10.0  #: P6; 0 on devnets and where peers share an address, as onion peers do
    colocation_threshold: int = 3  #: peers of one subnet group that cost nothing
    behaviour_weight: float = -10.0  #: P7
    behaviour_threshold: float = 2.0
    behaviour_decay: float = 0.98
    decay_to_zero: float = 0.01
    retain: float = 3600.0  #: seconds for which a bad score outlives its connection
    retain_max: int = 4096  #: scores kept of peers that left; the oldest go
    gossip_threshold: float = -20.0
    publish_threshold: float = -50.0
    graylist_threshold: float = -80.0
    exchange_threshold: float = 10.0  #: peers are taken from a PRUNE of who scores at least this
    opportunistic_threshold: float = 1.0


@dataclass(frozen=True)
class GossipParams:
    """Mesh degrees, times in seconds, and the bound of everything that another peer can make us hold."""

    d: int = 6
    d_low: int = 4
    d_high: int = 12
    d_score: int = 4
    d_out: int = 2
    d_lazy: int = 6
    gossip_factor: float = 0.25
    heartbeat: float = 1.0
    forward_delay: float = 0.05  #: seconds at most between accepting and forwarding; 0: at once, as others do
    forward_delay_busy: float = 0.3  #: the same while so many messages come that those held share their RPCs
    history: int = 5  #: heartbeats for which messages can be asked for
    history_gossip: int = 3  #: of them, announced with IHAVE
    fanout_ttl: float = 60.0
    seen_ttl: float = 120.0
    prune_backoff: float = 60.0
    unsubscribe_backoff: float = 10.0
    max_backoff: float = 3600.0
    graft_flood: float = 10.0  #: seconds after a PRUNE within which a GRAFT is blamed twice
    opportunistic_ticks: int = 60
    opportunistic_peers: int = 2
    iwant_followup: float = 3.0
    retransmissions: int = 3  #: times that one peer gets one message by asking for it
    flood_publish: bool = True
    flood_max: int = 32  #: peers that an own message is sent to at once
    exchange_peers: int = 16  #: peers told of in a PRUNE
    idontwant_bytes: int = 1024  #: messages of at least this size are worth an IDONTWANT
    idontwant_heartbeats: int = 3
    max_message: int = 64 * 1024  #: bytes of data
    max_rpc: int = 1 << 20  #: bytes
    max_topics_per_peer: int = 128
    max_topic_bytes: int = 256
    max_ihave_messages: int = 10  #: IHAVE from one peer in one heartbeat
    max_ihave_ids: int = 5000  #: ids that we ask one peer for, and that we announce, in one heartbeat
    max_iwant_ids: int = 5000  #: ids that we answer one peer in one heartbeat
    max_idontwant_ids: int = 1000  #: from one peer, kept at once
    max_seen: int = 500_000
    max_cached: int = 20_000  #: messages kept for IWANT
    max_pending: int = 10_000  #: messages under validation
    validations: float = 100.0  #: messages per second that a peer may have us validate
    validations_burst: int = 400
    invalid_cost: int = 20  #: validations that an invalid message counts as
    policy: SignaturePolicy = SignaturePolicy.STRICT_NO_SIGN
    score: ScoreParams = ScoreParams()

    def __post_init__(self) -> None:
        if not (0 <= self.d_out < self.d_low <= self.d <= self.d_high and self.d_out <= self.d // 2):
            raise ValueError("mesh degrees: 0 <= d_out < d_low <= d <= d_high and d_out <= d / 2")
        if not 0 <= self.d_score <= self.d - self.d_out or not 0 < self.history_gossip <= self.history:
            raise ValueError("d_score + d_out is at most d, and history_gossip at most history")
        if not 0 <= self.forward_delay <= self.forward_delay_busy:
            raise ValueError("0 <= forward_delay <= forward_delay_busy")
