"""Answering other peers' queries: bounds first, then the table and the stores."""

from __future__ import annotations

from random import Random

from owm.dht._core_guards import QueryQuota
from owm.dht._core_stores import ProviderStore, RecordStore
from owm.dht._core_table import RoutingTable
from owm.dht._core_types import Connected, Contact, DhtParams, Message, MessageType, Validator, key_of

__all__ = ["QueryRefused", "Server"]

_PROVIDERS_PER_ANSWER = 20


class QueryRefused(Exception):
    """The query is not answered; the stream it came on is to be reset.

    ``blame`` says whether an honest peer could have sent it: "" (we do not serve, or have no room), "excess" or
    "invalid".
    """

    def __init__(self, reason: str, blame: str = "") -> None:
        super().__init__(reason)
        self.blame = blame


class Server:
    """The half of a peer that answers."""

    __slots__ = (
        "_connected",
        "_params",
        "_quota",
        "_random",
        "_table",
        "_validator",
        "contact",
        "own",
        "providers",
        "records",
    )

    def __init__(
        self,
        contact: Contact,
        table: RoutingTable,
        params: DhtParams,
        random: Random,
        validator: Validator,
        connected: Connected | None,
    ) -> None:
        self.contact = contact
        self.own: dict[bytes, bytes] = {}  # our own records: never evicted, never counted with the others' (D9)
        self.records = RecordStore(contact.key, params)
        self.providers = ProviderStore(contact.key, params)
        self._table = table
        self._params = params
        self._random = random
        self._validator = validator
        self._connected = connected
        self._quota = QueryQuota(params.query_rate, params.query_burst)

    def admit(self, peer: bytes, now: float) -> None:
        """Count a query against its peer's quota; raises QueryRefused. Needs nothing of the message."""
        if not self._quota.admits(peer, now):
            raise QueryRefused("more queries than the quota allows", "excess")

    def value(self, key: bytes, now: float) -> tuple[bytes, int] | None:
        """The newest value that we have under a key, our own or held for others, with its sequence number."""
        held = self.records.find(key, now)
        own = self.own.get(key)
        if own is not None:
            validity = self._validator(key, own)  # it may have expired since it was published
            if validity is not None and not validity.expired and (held is None or validity.sequence >= held[1]):
                return own, validity.sequence
        return held

    def answer(
        self, peer: bytes, message: Message, provides: bool, groups: tuple[str, ...], now: float
    ) -> Message | None:
        """The response, or None where the protocol has none (ADD_PROVIDER).

        Args:
            peer: who asks, authenticated and admitted.
            provides: whether we ourselves provide the message's key.
            groups: the subnet groups that the peer counts under.

        Raises:
            QueryRefused: no response; reset the stream.
        """
        params = self._params
        kind, key = message.type, message.key
        if kind is MessageType.PING:
            return Message(kind, key)
        if not key or len(key) > params.max_key:
            raise QueryRefused(f"a key of {len(key)} bytes", "invalid")
        if kind is MessageType.FIND_NODE:
            return Message(kind, key, closer=self._closer(peer, key, exact=True))
        if kind is MessageType.GET_VALUE:
            found = self.value(key, now)
            return Message(kind, key, found[0] if found is not None else None, closer=self._closer(peer, key))
        if kind is MessageType.GET_PROVIDERS:
            providers = self.providers.get(key, _PROVIDERS_PER_ANSWER, self._random, now)
            if provides:
                providers = [self.contact, *(c for c in providers if c.id != self.contact.id)]
            return Message(kind, key, closer=self._closer(peer, key), providers=tuple(providers))
        if kind is MessageType.ADD_PROVIDER:
            # Only about itself may a peer say that it provides.
            provider = next((c for c in message.providers if c.id == peer), None)
            if provider is None:
                raise QueryRefused("a provider record about another peer", "invalid")
            self.providers.add(key, provider, groups, now)
            return None
        return self._put(peer, message, now)

    def _closer(self, peer: bytes, key: bytes, *, exact: bool = False) -> tuple[Contact, ...]:
        """The nearest peers of the table. ``exact``: the peer of that very id comes first if we are connected to it."""
        target = key_of(key)
        found = self._table.nearest(target, self._params.k, without=key_of(peer))
        sought: Contact | None = None
        if target == self.contact.key:
            sought = self.contact
        elif exact and self._connected is not None and key != peer and (not found or found[0].id != key):
            sought = self._connected(key)  # a client is in nobody's table, yet it may be asked for
        if sought is not None:
            return (sought, *found[: self._params.k - 1])
        return tuple(found)

    def _put(self, peer: bytes, message: Message, now: float) -> Message:
        value = message.value
        if not value or len(value) > self._params.max_value:
            raise QueryRefused("a value of a size that is not allowed", "invalid")
        validity = self._validator(message.key, value)
        if validity is None:
            raise QueryRefused("the value is not valid under its key", "invalid")
        if validity.expired:
            raise QueryRefused("the value has expired")
        if message.key in self.own:
            mine = self._validator(message.key, self.own[message.key])
            if mine is not None and mine.sequence > validity.sequence:
                raise QueryRefused("an older version of our own record")
        if not self.records.put(message.key, value, validity, peer, now):
            raise QueryRefused("a newer value is held, or there is no room")
        return Message(message.type, message.key, value)
