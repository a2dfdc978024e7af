"""What the rest of OWM knows of the distributed hash table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Self

from owm.identity import PeerId
from owm.records import SignedRecord

__all__ = ["Dht", "DhtStatistics", "Provider"]


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that says it provides a key, with the multiaddrs it can be dialled at."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DhtStatistics:
    """The state of the routing table and stores, and counters since start."""

    mode: str = "client"  #: "client" or "server"
    table: int = 0  #: peers in the routing table
    records: int = 0  #: values held for others
    providers: int = 0  #: provider records held for others
    lookups: int = 0
    queries_sent: int = 0
    queries_failed: int = 0
    queries_served: int = 0
    network_size: float | None = None  #: estimate of server-mode peers; None while we know nobody
    extra: dict[str, float] = field(default_factory=dict)


class Dht(ABC):
    """A Kademlia DHT (Maymounkov and Mazieres 2002; libp2p kad-dht wire format).

    Keys are bytes; they are hashed with SHA-256 into the key space. Every call bounds its own time.
    """

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[Self]:
        """Serve and maintain the table until the block ends."""

    @abstractmethod
    async def bootstrap(self) -> int:
        """Look ourselves up through the connected peers and fill the table; returns the table's size."""

    @abstractmethod
    async def find_peer(self, peer: PeerId) -> Provider | None:
        """Where the peer can be dialled: it is connected, or has just been reached there under its id.

        None when nobody knows it, or when it was not reachable at any address that others gave for it.
        """

    @abstractmethod
    def known_peers(self, limit: int = 20) -> list[Provider]:
        """Peers of the routing table, a random sample, for a peer that wants more connections. Does no I/O."""

    @abstractmethod
    async def provide(self, key: bytes) -> int:
        """Announce ourselves as provider of ``key``, now and on every re-provide; returns the peers that took it."""

    @abstractmethod
    async def unprovide(self, key: bytes) -> None:
        """Stop re-announcing ``key``; what others hold expires."""

    @abstractmethod
    async def find_providers(self, key: bytes, limit: int = 20) -> list[Provider]:
        """Up to ``limit`` distinct providers."""

    @abstractmethod
    async def put(self, record: SignedRecord) -> int:
        """Store a signed record under ``record.dht_key``; returns the number of peers that took it."""

    @abstractmethod
    async def get(self, key: bytes) -> SignedRecord | None:
        """The newest valid record under ``key``, or None."""

    @abstractmethod
    async def survey(self) -> float | None:
        """About how many server-mode peers there are, by looking for random keys; None when nobody answers.

        Costs some fifty messages; ``statistics().network_size`` costs none, but whoever crowds around us can skew it.
        """

    @abstractmethod
    def statistics(self) -> DhtStatistics: ...
