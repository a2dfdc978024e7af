"""What the rest of OWM knows of gossip: topics of signed records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Self

import trio

from owm.identity import PeerId
from owm.records import SignedRecord

__all__ = ["Gossip", "GossipStatistics", "Received", "Validation", "Validator"]


class Validation(Enum):
    """What a topic's validator says of a message."""

    ACCEPT = "accept"
    IGNORE = "ignore"  #: do not forward, do not blame the sender (for example: already known)
    REJECT = "reject"  #: do not forward, blame the sender


Validator = Callable[[SignedRecord, PeerId], Validation]


@dataclass(frozen=True, slots=True)
class Received:
    """A record that passed validation, with the peer that forwarded it."""

    record: SignedRecord
    forwarder: PeerId


@dataclass(frozen=True, slots=True)
class GossipStatistics:
    """The state of the meshes and counters since start."""

    topics: int = 0
    peers: int = 0
    mesh_links: int = 0
    published: int = 0
    delivered: int = 0  #: distinct messages handed to subscribers
    duplicates: int = 0
    rejected: int = 0
    ignored: int = 0


class Gossip(ABC):
    """Publish and subscribe (GossipSub v1.1/v1.2). Records are verified once, before the validator sees them."""

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[Self]:
        """Serve and heartbeat until the block ends."""

    @abstractmethod
    def subscribe(self, topic: str, validator: Validator | None = None) -> trio.MemoryReceiveChannel[Received]:
        """Join ``topic``; every accepted message arrives once. A subscriber that does not read loses the oldest."""

    @abstractmethod
    def unsubscribe(self, topic: str) -> None:
        """Leave ``topic``; its subscriptions end."""

    @abstractmethod
    async def publish(self, topic: str, record: SignedRecord) -> int:
        """Send our own record to the topic; returns the number of peers it was sent to at once (0 is possible)."""

    @abstractmethod
    def statistics(self) -> GossipStatistics: ...
