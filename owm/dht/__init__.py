"""The distributed hash table: Kademlia as a sans-IO core and a trio service."""

from owm.dht._interface import Dht, DhtStatistics, Provider

__all__ = ["Dht", "DhtStatistics", "Provider"]
