"""Gossip: GossipSub as a sans-IO core and a trio service."""

from owm.gossip._interface import Gossip, GossipStatistics, Received, Validation, Validator

__all__ = ["Gossip", "GossipStatistics", "Received", "Validation", "Validator"]
