"""What the parts of the Kademlia core pass around: contacts, messages, parameters, effects.

Everything here is slotted and without behaviour, because a simulation holds millions of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

__all__ = [
    "KEY_BITS",
    "Connected",
    "Contact",
    "DhtParams",
    "Done",
    "Effect",
    "GroupOf",
    "Kind",
    "Message",
    "MessageType",
    "Misbehaved",
    "Result",
    "SendQuery",
    "Validator",
    "Validity",
    "key_of",
]

KEY_BITS: Final = 256


@lru_cache(maxsize=65536)
def key_of(data: bytes) -> int:
    """Where a key or a peer id lies in the key space: its SHA-256 as an integer (as go-libp2p's ``ConvertKey``)."""
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


class Contact:
    """A peer as others may dial it. Immutable by convention, so that simulated nodes share one object."""

    __slots__ = ("addresses", "id", "key", "wire")

    def __init__(self, peer: bytes, addresses: tuple[str, ...] = (), key: int | None = None) -> None:
        self.id = peer
        self.key = key_of(peer) if key is None else key
        self.addresses = addresses
        self.wire: bytes | None = None  # its encoding, kept by the codec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contact) and self.id == other.id and self.addresses == other.addresses

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Contact {self.id[-4:].hex()} {self.addresses[:1]}>"


class MessageType(IntEnum):
    """The message types of libp2p's kad-dht."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


class Message:
    """A request or a response of kad-dht.

    ``sender`` and ``proof`` are ours: the first message of a stream says where its sender can be dialled and that it is
    in server mode. Foreign peers skip the unknown fields and leave them out.
    """

    __slots__ = ("closer", "key", "proof", "providers", "sender", "type", "value")

    def __init__(
        self,
        type: MessageType,
        key: bytes = b"",
        value: bytes | None = None,
        closer: tuple[Contact, ...] = (),
        providers: tuple[Contact, ...] = (),
        sender: Contact | None = None,
        proof: bytes = b"",
    ) -> None:
        self.type = type
        self.key = key
        self.value = value
        self.closer = closer
        self.providers = providers
        self.sender = sender
        self.proof = proof

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def _fields(self) -> tuple[object, ...]:
        return self.type, self.key, self.value, self.closer, self.providers, self.sender, self.proof

    def __repr__(self) -> str:
        return f"<{self.type.name} {self.key[:8].hex()} closer={len(self.closer)} providers={len(self.providers)}>"


@dataclass(frozen=True)
class Validity:
    """What a validator says of a genuine record."""

    sequence: int  #: of two records under one key, the higher one counts
    ttl: float | None = None  #: seconds for which it stays valid; None: as long as the store keeps records

    @property
    def expired(self) -> bool:
        """Whether it was valid once: it is of no use, and nobody is to blame for having it."""
        return self.ttl is not None and self.ttl <= 0


Validator = Callable[[bytes, bytes], Validity | None]  #: (key, value) to what it is worth; None: forged
Connected = Callable[[bytes], Contact | None]  #: (peer id) to where a peer says it listens that is connected to us
GroupOf = Callable[[str], str | None]  #: (multiaddr) to its subnet group; None: exempt from diversity


@dataclass(frozen=True)
class DhtParams:
    """The parameters of the table, lookups and stores. Times in seconds, sizes in bytes."""

    k: int = 20  #: bucket size and replication
    alpha: int = 3  #: queries in flight on one path
    beta: int = 3  #: a lookup ends when this many of the closest have answered
    paths: int = 3  #: disjoint paths of get and find_providers
    quorum: int = 3  #: answers with a value after which a get ends
    query_timeout: float = 1.75
    slow_after: float = 0.6  #: a query this old no longer holds up the window
    lookup_timeout: float = 8.0
    table_per_group: int = 3  #: peers of one subnet group in the table (D1)
    bucket_per_group: int = 2
    onion_share: float = 0.2  #: of the table, for all onion peers together
    failures_to_evict: int = 2
    refresh_interval: float = 3600.0  #: buckets not used for so long are looked up
    verify_limit: int = 8  #: verifications of newcomers in flight
    record_ttl: float = 24 * 3600.0
    republish_interval: float = 8 * 3600.0
    provider_ttl: float = 2 * 3600.0
    reprovide_interval: float = 40 * 60.0
    max_key: int = 256
    max_value: int = 64 * 1024
    max_records: int = 8192
    max_record_bytes: int = 64 * 1024 * 1024
    records_per_peer: int = 512  #: values one peer may have us hold
    max_provided_keys: int = 8192
    providers_per_key: int = 256
    providers_per_group: int = 16  #: of one subnet group, for one key
    keys_per_provider: int = 1024
    keys_per_group: int = 2048  #: registrations of one subnet group, over all keys
    sweep_interval: float = 300.0
    query_rate: float = 50.0  #: inbound queries a second from one peer; 0: no limit
    query_burst: int = 200
    puzzle_bits: int = 0  #: leading zero bits that a server's proof must have (D6); 0: no puzzle
    dial_back_groups: int = 3  #: subnet groups that must have dialled us before we serve (D15); 0: serve at once
    merge_interval: float = 600.0  #: how often a remembered stranger is asked for our neighbourhood (D13)
    newcomers_per_group: float = 16.0  #: new ids admitted from one subnet group, with a half-life of a day (D17)
    remembered: int = 256  #: peers remembered for a restart or a merge
    region_parts: int = 8  #: sub-lookups that cover a key's region (D3, D4)
    region_size: float = 30.0  #: honest peers wanted in a region
    region_queries: int = 256  #: queries of one operation on a region, lookups and messages to its peers together


class Kind(IntEnum):
    """What an operation is for."""

    FIND_PEER = 0
    GET = 1
    PUT = 2
    PROVIDE = 3
    FIND_PROVIDERS = 4
    REFRESH = 5


@dataclass
class Result:
    """How an operation ended."""

    kind: Kind
    closest: list[Contact]  #: the closest peers that answered
    peer: Contact | None = None  #: find_peer's
    value: bytes | None = None  #: get's
    providers: list[Contact] | None = None
    stored: int = 0  #: peers that took the record
    queries: int = 0
    hops: int = 0  #: responses in a row that led to the end
    duration: float = 0.0


class SendQuery:
    """Effect: send ``message``, dialling the contact where needed; report the answer or failure by ``query_id``."""

    __slots__ = ("contact", "deadline", "message", "query_id")

    def __init__(self, query_id: int, contact: Contact, message: Message, deadline: float) -> None:
        self.query_id = query_id
        self.contact = contact
        self.message = message
        self.deadline = deadline


class Misbehaved:
    """Effect: a peer did what no honest one does; ``reason`` names it."""

    __slots__ = ("peer", "reason")

    def __init__(self, peer: bytes, reason: str) -> None:
        self.peer = peer
        self.reason = reason


class Done:
    """Effect: the operation has ended."""

    __slots__ = ("operation", "result")

    def __init__(self, operation: int, result: Result) -> None:
        self.operation = operation
        self.result = result


Effect = SendQuery | Done | Misbehaved
