"""What a peer holds for others: values and provider records, bounded and expiring."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from heapq import heapify, heappop, heappush
from random import Random
from typing import TypeVar

from owm.dht._core_types import Contact, DhtParams, Validity, key_of

__all__ = ["ProviderStore", "RecordStore"]

_HIGHEST_KEPT = 16_384
_SWEEP_GAP = 10.0  # seconds between two looks at everything because the store is full

_Key = TypeVar("_Key", bytes, str)


class _ByDistance:
    """Which of the keys held lies farthest from us, without looking at all of them."""

    __slots__ = ("_heap", "_own_key")

    def __init__(self, own_key: int) -> None:
        self._own_key = own_key
        self._heap: list[tuple[int, bytes]] = []

    def distance(self, key: bytes) -> int:
        return key_of(key) ^ self._own_key

    def add(self, key: bytes, held: Collection[bytes]) -> None:
        """A key is held from now on; keys that are not held any longer are left in until they are in the way."""
        heappush(self._heap, (-self.distance(key), key))
        if len(self._heap) > 2 * len(held) + 64:
            self._heap = [(-self.distance(key), key) for key in held]
            heapify(self._heap)

    def farthest(self, held: Collection[bytes]) -> bytes | None:
        while self._heap:
            key = self._heap[0][1]
            if key in held:
                return key
            heappop(self._heap)
        return None


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

    __slots__ = ("_by_distance", "_by_holder", "_bytes", "_highest", "_items", "_params")

    def __init__(self, own_key: int, params: DhtParams) -> None:
        self._by_distance = _ByDistance(own_key)
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
        self._by_distance.add(key, self._items)
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
            farthest = self._by_distance.farthest(self._items)
            if farthest is None or self._by_distance.distance(key) >= self._by_distance.distance(farthest):
                return False
            self._drop(farthest)
        return True

    def _drop(self, key: bytes) -> None:
        held = self._items.pop(key)
        self._bytes -= len(held.value)
        _decrease(self._by_holder, held.holder)

    def get(self, key: bytes, now: float) -> bytes | None:
        found = self.find(key, now)
        return found[0] if found is not None else None

    def find(self, key: bytes, now: float) -> tuple[bytes, int] | None:
        """The value and its sequence number, unless it has expired."""
        held = self._items.get(key)
        if held is None:
            return None
        if held.expires <= now:
            self._drop(key)
            return None
        return held.value, held.sequence

    def sweep(self, now: float) -> None:
        """Drop what has expired."""
        for key in [key for key, held in self._items.items() if held.expires <= now]:
            self._drop(key)


class _Providing:
    __slots__ = ("contact", "expires", "groups")

    def __init__(self, contact: Contact, groups: tuple[str, ...], expires: float) -> None:
        self.contact = contact
        self.groups = groups
        self.expires = expires


class ProviderStore:
    """Providers by key. The oldest that renew stay; newcomers to a full key are refused (D7).

    When there are too many keys, the one farthest from us makes room, as with values: nobody closes the store by
    filling it. Peers, and subnet groups, are bounded in how much they register.
    """

    __slots__ = ("_by_distance", "_by_group", "_by_peer", "_keys", "_params", "_size", "_sweep_at")

    def __init__(self, own_key: int, params: DhtParams) -> None:
        self._by_distance = _ByDistance(own_key)
        self._params = params
        self._keys: dict[bytes, dict[bytes, _Providing]] = {}
        self._by_peer: Counter[bytes] = Counter()
        self._by_group: Counter[str] = Counter()
        self._size = 0
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return self._size

    def add(self, key: bytes, provider: Contact, groups: tuple[str, ...], now: float) -> bool:
        """Note or renew a provider that counts under these subnet groups; False when a cap refuses it."""
        params = self._params
        providers = self._keys.get(key)
        known = providers.get(provider.id) if providers is not None else None
        if known is not None:
            known.contact, known.expires = provider, now + params.provider_ttl
            return True
        if providers is not None and len(providers) >= params.providers_per_key:
            self._expire(key, providers, now)
            providers = self._keys.get(key)
        if self._by_peer[provider.id] >= params.keys_per_provider:
            return False
        if any(self._by_group[group] >= params.keys_per_group for group in groups):
            return False
        if providers is None:
            if not self._make_room(key, now):
                return False
            providers = self._keys[key] = {}
            self._by_distance.add(key, self._keys)
        elif len(providers) >= params.providers_per_key or not self._is_diverse(providers, groups):
            return False
        providers[provider.id] = _Providing(provider, groups, now + params.provider_ttl)
        self._by_peer[provider.id] += 1
        self._by_group.update(groups)
        self._size += 1
        return True

    def _make_room(self, key: bytes, now: float) -> bool:
        """Room for one more key; False when all that are held are nearer to us."""
        most = self._params.max_provided_keys
        if len(self._keys) >= most and now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_GAP
            self.sweep(now)
        if len(self._keys) < most:
            return True
        farthest = self._by_distance.farthest(self._keys)
        if farthest is None or self._by_distance.distance(key) >= self._by_distance.distance(farthest):
            return False
        for peer in list(self._keys[farthest]):
            self._drop(farthest, peer)
        return True

    def _is_diverse(self, providers: dict[bytes, _Providing], groups: tuple[str, ...]) -> bool:
        most = self._params.providers_per_group
        if not groups or len(providers) < most:
            return True
        return all(sum(group in held.groups for held in providers.values()) < most for group in groups)

    def get(self, key: bytes, count: int, random: Random, now: float) -> list[Contact]:
        """A random sample of the providers that have not expired."""
        providers = self._keys.get(key)
        if not providers:
            return []
        self._expire(key, providers, now)
        live = [held.contact for held in providers.values()]
        return live if len(live) <= count else random.sample(live, count)

    def _drop(self, key: bytes, peer: bytes) -> None:
        providers = self._keys[key]
        held = providers.pop(peer)
        self._size -= 1
        _decrease(self._by_peer, peer)
        for group in held.groups:
            _decrease(self._by_group, group)
        if not providers:
            del self._keys[key]

    def _expire(self, key: bytes, providers: dict[bytes, _Providing], now: float) -> None:
        for peer in [peer for peer, held in providers.items() if held.expires <= now]:
            self._drop(key, peer)

    def sweep(self, now: float) -> None:
        """Drop what has expired."""
        for key, providers in list(self._keys.items()):
            self._expire(key, providers, now)


def _decrease(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
