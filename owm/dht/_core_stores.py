"""What a peer holds for others: values and provider records, bounded and expiring."""

from __future__ import annotations

from collections import Counter, OrderedDict
from random import Random

from owm.dht._core_types import Contact, DhtParams, GroupOf, Validity, key_of

__all__ = ["ProviderStore", "RecordStore"]

_HIGHEST_KEPT = 16_384


class _Held:
    __slots__ = ("expires", "holder", "sequence", "value")

    def __init__(self, value: bytes, sequence: int, expires: float, holder: bytes) -> None:
        self.value = value
        self.sequence = sequence
        self.expires = expires
        self.holder = holder


class RecordStore:
    """Values by key. Bounded in number, bytes and per peer that stored them; expiry on read and by sweeping (D8).

    When full, the value farthest from us makes room: it is also held by peers nearer to it. The highest sequence
    number of a key outlives its value, so an old record cannot be replayed once the new one has expired (D16).
    """

    __slots__ = ("_by_holder", "_bytes", "_highest", "_items", "_own_key", "_params")

    def __init__(self, own_key: int, params: DhtParams) -> None:
        self._own_key = own_key
        self._params = params
        self._items: dict[bytes, _Held] = {}
        self._by_holder: Counter[bytes] = Counter()
        self._highest: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: bytes, value: bytes, validity: Validity, holder: bytes, now: float) -> bool:
        """Hold a validated value; False when an older one or for want of room. The same sequence renews it."""
        params = self._params
        if validity.sequence < self._highest.get(key, validity.sequence):
            return False
        held = self._items.get(key)
        if held is not None and held.sequence == validity.sequence and held.value != value and held.expires > now:
            return False
        if held is None and self._by_holder[holder] >= params.records_per_peer:
            self.sweep(now)
            if self._by_holder[holder] >= params.records_per_peer:
                return False
        ttl = params.record_ttl if validity.ttl is None else min(validity.ttl, params.record_ttl)
        if ttl <= 0:
            return False
        if held is not None:
            held = self._items.get(key)  # unless sweeping took it
        if held is not None:
            holder = held.holder  # a renewal by somebody else counts for who brought it first
            self._drop(key)
        if not self._make_room(key, len(value), now):
            return False
        self._items[key] = _Held(value, validity.sequence, now + ttl, holder)
        self._by_holder[holder] += 1
        self._bytes += len(value)
        self._highest[key] = validity.sequence
        self._highest.move_to_end(key)
        if len(self._highest) > _HIGHEST_KEPT:
            self._highest.popitem(last=False)
        return True

    def _make_room(self, key: bytes, size: int, now: float) -> bool:
        params = self._params

        def full() -> bool:
            return len(self._items) >= params.max_records or self._bytes + size > params.max_record_bytes

        if full():
            self.sweep(now)
        while full():
            if not self._items:
                return False
            farthest = max(self._items, key=lambda held: key_of(held) ^ self._own_key)
            if key_of(key) ^ self._own_key >= key_of(farthest) ^ self._own_key:
                return False
            self._drop(farthest)
        return True

    def _drop(self, key: bytes) -> None:
        held = self._items.pop(key)
        self._bytes -= len(held.value)
        self._by_holder[held.holder] -= 1
        if not self._by_holder[held.holder]:
            del self._by_holder[held.holder]

    def get(self, key: bytes, now: float) -> bytes | None:
        held = self._items.get(key)
        if held is None:
            return None
        if held.expires <= now:
            self._drop(key)
            return None
        return held.value

    def sweep(self, now: float) -> None:
        """Drop what has expired."""
        for key in [key for key, held in self._items.items() if held.expires <= now]:
            self._drop(key)


class ProviderStore:
    """Providers by key. The oldest that renew stay; newcomers to a full key are refused (D7)."""

    __slots__ = ("_by_peer", "_group_of", "_keys", "_params", "_size")

    def __init__(self, params: DhtParams, group_of: GroupOf | None) -> None:
        self._params = params
        self._group_of = group_of
        self._keys: dict[bytes, dict[bytes, tuple[Contact, float]]] = {}
        self._by_peer: Counter[bytes] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: bytes, provider: Contact, now: float) -> bool:
        """Note or renew a provider; False when a cap refuses it."""
        params = self._params
        providers = self._keys.get(key)
        if providers is None:
            if self._by_peer[provider.id] >= params.keys_per_provider:
                return False
            if len(self._keys) >= params.max_provided_keys:
                self.sweep(now)
                if len(self._keys) >= params.max_provided_keys:
                    return False
            providers = self._keys[key] = {}
        if provider.id not in providers:
            if len(providers) >= params.providers_per_key:
                self._expire(key, providers, now)
                providers = self._keys.setdefault(key, providers)
                if len(providers) >= params.providers_per_key:
                    return False
            if self._by_peer[provider.id] >= params.keys_per_provider or not self._is_diverse(providers, provider):
                if not providers:
                    del self._keys[key]
                return False
            self._by_peer[provider.id] += 1
            self._size += 1
        providers[provider.id] = (provider, now + params.provider_ttl)
        return True

    def _is_diverse(self, providers: dict[bytes, tuple[Contact, float]], provider: Contact) -> bool:
        if self._group_of is None or len(providers) < self._params.providers_per_group:
            return True
        group_of = self._group_of
        groups = {group for address in provider.addresses if (group := group_of(address)) is not None}
        return all(
            sum(any(group_of(a) == group for a in held.addresses) for held, _ in providers.values())
            < self._params.providers_per_group
            for group in groups
        )

    def get(self, key: bytes, count: int, random: Random, now: float) -> list[Contact]:
        """A random sample of the providers that have not expired."""
        providers = self._keys.get(key)
        if not providers:
            return []
        self._expire(key, providers, now)
        live = [contact for contact, _ in providers.values()]
        return live if len(live) <= count else random.sample(live, count)

    def _expire(self, key: bytes, providers: dict[bytes, tuple[Contact, float]], now: float) -> None:
        for peer in [peer for peer, (_, expires) in providers.items() if expires <= now]:
            del providers[peer]
            self._size -= 1
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]
        if not providers:
            self._keys.pop(key, None)

    def sweep(self, now: float) -> None:
        """Drop what has expired."""
        for key, providers in list(self._keys.items()):
            self._expire(key, providers, now)
