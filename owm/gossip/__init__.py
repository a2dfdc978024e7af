"""Gossip: GossipSub as a sans-IO core and a trio service."""

from owm.gossip._core_params import GossipParams, ScoreParams
from owm.gossip._interface import Gossip, GossipStatistics, Received, Validation, Validator
from owm.gossip._pubsub import PubSub, TopicMessage
from owm.gossip._service import GossipService

__all__ = [
    "Gossip",
    "GossipParams",
    "GossipService",
    "GossipStatistics",
    "PubSub",
    "Received",
    "ScoreParams",
    "TopicMessage",
    "Validation",
    "Validator",
]
