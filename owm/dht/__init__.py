"""The distributed hash table: Kademlia as a sans-IO core and a trio service."""

from owm.dht._core_types import DhtParams, Validator, Validity
from owm.dht._interface import Dht, DhtStatistics, Provider
from owm.dht._service import KademliaDht, dht_protocol, provider_key

__all__ = [
    "Dht",
    "DhtParams",
    "DhtStatistics",
    "KademliaDht",
    "Provider",
    "Validator",
    "Validity",
    "dht_protocol",
    "provider_key",
]
