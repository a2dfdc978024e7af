"""Gossip: GossipSub as a sans-IO core and a trio service."""

from owm.gossip._core_params import GossipParams, ScoreParams
from owm.gossip._interface import Gossip, GossipStatistics, Received, Validation, Validator
from owm.gossip._service import GossipService
from owm.gossip._shards import ManifestTopics, shard_of

__all__ = [
    "Gossip",
    "GossipParams",
    "GossipService",
    "GossipStatistics",
    "ManifestTopics",
    "Received",
    "ScoreParams",
    "Validation",
    "Validator",
    "shard_of",
]
