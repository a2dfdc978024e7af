"""One simulated node: the DHT and gossip cores that peers run, with the numbers that the world keeps about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Final

from owm.dht._core import KademliaCore
from owm.dht._core_types import Contact, DhtParams, Validator, Validity
from owm.gossip._core import GossipCore
from owm.gossip._core_params import GossipParams
from owm.gossip._core_wire import Message as Topical

__all__ = ["EPOCH", "Node", "group_of", "message_id", "record_value", "validate"]

_SEQUENCE: Final = 8
EPOCH: Final = 1_800_000_000.0  #: unix seconds at the start of every run


class Node:
    """State of one node. ``dht`` and ``gossip`` are None where the scenario leaves them out."""

    __slots__ = (
        "contact",
        "dht",
        "far",
        "forward_at",
        "frozen",
        "gossip",
        "hostile",
        "index",
        "links",
        "nat",
        "online",
        "skew",
        "tick_at",
        "version",
    )

    def __init__(self, index: int, contact: Contact, nat: str, skew: float) -> None:
        self.index = index
        self.contact = contact
        self.nat = nat
        self.skew = skew  #: seconds that its wall clock is off
        self.dht: KademliaCore | None = None
        self.gossip: GossipCore[int] | None = None
        self.online = False
        self.frozen = False  #: up, but answers nothing
        self.hostile = False
        self.far = False  #: its clock is off by more than the network puts up with
        self.links: dict[int, None] = {}  #: gossip connections; a dict for its order
        self.tick_at = float("inf")  #: when the DHT core's timer is set for
        self.forward_at = float("inf")  #: when the gossip core's is
        self.version = 0  #: counts the times it came online, so that timers of an earlier life are ignored

    def start(self, dht: DhtParams | None, gossip: GossipParams | None, random: Random, validator: Validator) -> None:
        """Come online with empty state, as a peer whose cache was lost."""
        self.online = True
        self.version += 1
        self.links = {}
        self.tick_at = self.forward_at = float("inf")
        if dht is not None:
            self.dht = KademliaCore(self.contact, dht, random, validator, group_of=group_of)
        if gossip is not None:
            self.gossip = GossipCore(self.index, gossip, random, message_id)


@lru_cache(maxsize=1 << 17)
def group_of(address: str) -> str | None:
    """The /16 of a simulated address ``/ip4/a.b.c.d/tcp/p``."""
    first, second, _ = address[5:].split(".", 2)
    return f"{first}.{second}"


def message_id(message: Topical) -> bytes:
    """Messages are named by their first sixteen bytes, which the world makes unique."""
    return message.data[:16]


def record_value(sequence: int, key: bytes) -> bytes:
    """A stand-in for a signed record: it is valid for its key only, and forging it is out of the model."""
    return sequence.to_bytes(_SEQUENCE, "big") + key + bytes(64)


def validate(now: Callable[[], float], tolerance: float, max_age: float = 0.0) -> Validator:
    """The validator of stand-in records, which judges them as peers judge signed ones.

    Args:
        now: this node's wall clock, in unix seconds; a record's sequence number is its issuer's, in milliseconds.
        tolerance: seconds that a record may come from the future.
        max_age: seconds for which a record is valid; 0 for ever.
    """

    def check(key: bytes, value: bytes) -> Validity | None:
        if len(value) != _SEQUENCE + len(key) + 64 or value[_SEQUENCE : _SEQUENCE + len(key)] != key:
            return None
        sequence = int.from_bytes(value[:_SEQUENCE], "big")
        age = now() - sequence / 1000
        if age < -tolerance:
            return None
        if not max_age:
            return Validity(sequence)
        return Validity(sequence, min(max_age, max_age - age)) if age < max_age else None

    return check
