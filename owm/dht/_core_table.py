"""The routing table: k-buckets by common prefix, diverse by subnet, kept by liveness.

Kademlia (Maymounkov and Mazieres 2002) with the diversity caps of go-libp2p's kad-dht. A peer enters only after it has
answered us under its own id, so what others say of it cannot poison the table. Old peers that answer are never pushed
out by new ones.
"""

from __future__ import annotations

from itertools import islice
from random import Random

from owm.dht._core_keyspace import MAX_PREFIX_BITS
from owm.dht._core_types import KEY_BITS, Contact, DhtParams, GroupOf

__all__ = ["Entry", "RoutingTable"]

_ONION = "onion"
_ONION_FLOOR = 3  # small tables still take some onion peers


class Entry:
    """A peer of the table."""

    __slots__ = ("contact", "failures", "groups", "seen", "since")

    def __init__(self, contact: Contact, groups: tuple[str, ...], now: float) -> None:
        self.contact = contact
        self.groups = groups
        self.since = now  # when it entered
        self.seen = now
        self.failures = 0


class RoutingTable:
    """Buckets of at most k peers; bucket i holds those whose key shares exactly i leading bits with ours."""

    __slots__ = ("_buckets", "_failing", "_groups", "_onions", "_params", "_size", "_touched", "group_of", "key")

    def __init__(self, key: int, params: DhtParams, group_of: GroupOf | None) -> None:
        self.key = key
        self._params = params
        self.group_of = group_of
        self._buckets: list[dict[int, Entry]] = []
        self._touched: list[float] = []
        self._groups: dict[str, int] = {}
        self._onions = 0
        self._failing = 0  # entries that failed last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def bucket_index(self, key: int) -> int:
        """The leading bits that ``key`` shares with ours (256 for our own)."""
        return KEY_BITS - (self.key ^ key).bit_length()

    def get(self, key: int) -> Entry | None:
        index = KEY_BITS - (self.key ^ key).bit_length()
        return self._buckets[index].get(key) if index < len(self._buckets) else None

    def groups_of(self, contact: Contact, observed: str | None = None) -> tuple[str, ...]:
        """The distinct subnet groups that a peer counts under, exempt ones left out.

        That is the group of ``observed``, the far end of its connection: it alone cannot be made up. The addresses that
        the contact names count where nothing was observed, as before it is dialled at them.
        """
        return self.groups_at(contact.addresses if observed is None else (observed,))

    def groups_at(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """The distinct groups of some addresses."""
        group_of = self.group_of
        if group_of is None:
            return ()
        if len(addresses) == 1:  # as mostly
            group = group_of(addresses[0])
            return (group,) if group is not None else ()
        return tuple({group for address in addresses if (group := group_of(address)) is not None})

    def has_room(self, contact: Contact, groups: tuple[str, ...]) -> bool:
        """Whether a newcomer of these groups would be taken: worth asking before it is verified."""
        index = self.bucket_index(contact.key)
        if index >= KEY_BITS:
            return False
        bucket = self._buckets[index] if index < len(self._buckets) else {}
        if contact.key in bucket:
            return False
        if len(bucket) >= self._params.k and not (self._failing and any(e.failures for e in bucket.values())):
            return False
        return self._is_diverse(bucket, groups)

    def _is_diverse(self, bucket: dict[int, Entry], groups: tuple[str, ...]) -> bool:
        for group in groups:
            if group == _ONION:
                if self._onions >= max(_ONION_FLOOR, int(self._size * self._params.onion_share)):
                    return False
                continue
            known = self._groups.get(group, 0)
            if known >= self._params.table_per_group:
                return False
            most = self._params.bucket_per_group
            if known >= most and sum(group in entry.groups for entry in bucket.values()) >= most:
                return False
        return True

    def heard(self, contact: Contact, now: float, groups: tuple[str, ...] | None = None) -> bool:
        """A peer has answered us; it enters, or its entry is renewed. Returns whether it entered just now.

        ``groups``: what it counts under; None: as its addresses say.
        """
        key = contact.key
        index = KEY_BITS - (self.key ^ key).bit_length()
        if index >= KEY_BITS:
            return False
        while index >= len(self._buckets):
            self._buckets.append({})
            self._touched.append(now)
        bucket = self._buckets[index]
        entry = bucket.get(key)
        if entry is not None:
            entry.seen = now
            if entry.failures:
                entry.failures = 0
                self._failing -= 1
            moved = contact is not entry.contact and contact.addresses and contact.addresses != entry.contact.addresses
            if moved or (groups is not None and groups != entry.groups):
                self._move(entry, contact, bucket, self.groups_of(contact) if groups is None else groups)
            return False
        if len(bucket) >= self._params.k:
            if not self._failing:
                return False
            weakest = max(bucket.values(), key=lambda e: (e.failures, -e.seen))
            if not weakest.failures:
                return False
            self.remove(weakest.contact.key)
        if groups is None:
            groups = self.groups_of(contact)
        if not self._is_diverse(bucket, groups):
            return False
        bucket[key] = Entry(contact, groups, now)
        self._count(groups, 1)
        self._size += 1
        return True

    def _move(self, entry: Entry, contact: Contact, bucket: dict[int, Entry], groups: tuple[str, ...]) -> None:
        """A known peer answers from elsewhere; it keeps its old place if the new one is too crowded."""
        self._count(entry.groups, -1)
        old, entry.groups = entry.groups, ()
        if self._is_diverse(bucket, groups):
            entry.groups = groups
            if contact.addresses:
                entry.contact = contact
        else:
            entry.groups = old
        self._count(entry.groups, 1)

    def _count(self, groups: tuple[str, ...], by: int) -> None:
        for group in groups:
            if group == _ONION:
                self._onions += by
                continue
            known = self._groups.get(group, 0) + by
            if known > 0:
                self._groups[group] = known
            else:
                del self._groups[group]

    def failed(self, key: int) -> Entry | None:
        """A peer did not answer; returns its entry when that evicted it."""
        entry = self.get(key)
        if entry is None:
            return None
        self._failing += not entry.failures
        entry.failures += 1
        if entry.failures < self._params.failures_to_evict:
            return None
        self.remove(key)
        return entry

    def remove(self, key: int) -> None:
        index = self.bucket_index(key)
        entry = self._buckets[index].pop(key, None) if index < len(self._buckets) else None
        if entry is not None:
            self._count(entry.groups, -1)
            self._size -= 1
            self._failing -= bool(entry.failures)

    def nearest(self, target: int, count: int, without: int = -1) -> list[Contact]:
        """The ``count`` peers nearest to ``target``, nearest first.

        Whole buckets are nearer than others, so only one or two need sorting.
        """
        buckets = self._buckets
        index = KEY_BITS - (self.key ^ target).bit_length()
        found: list[Contact] = []
        distance = target.__xor__
        if index < len(buckets):
            bucket = buckets[index]
            found = [bucket[key].contact for key in sorted(bucket, key=distance) if key != without]
            if len(found) < count:
                deeper: dict[int, Entry] = {}
                for bucket in buckets[index + 1 :]:
                    deeper.update(bucket)
                found += [deeper[key].contact for key in sorted(deeper, key=distance) if key != without]
        for shallow in range(min(index, len(buckets)) - 1, -1, -1):
            if len(found) >= count:
                break
            bucket = buckets[shallow]
            found += [bucket[key].contact for key in sorted(bucket, key=distance) if key != without]
        return found[:count]

    def contacts(self) -> list[Contact]:
        return [entry.contact for bucket in self._buckets for entry in bucket.values()]

    def keys(self) -> list[int]:
        return [key for bucket in self._buckets for key in bucket]

    def entries(self) -> list[Entry]:
        return [entry for bucket in self._buckets for entry in bucket.values()]

    def sample(self, random: Random, count: int) -> list[Contact]:
        """A random sample, for a peer that wants more connections."""
        return [self._contact(place) for place in random.sample(range(self._size), min(count, self._size))]

    def _contact(self, place: int) -> Contact:
        """The contact in some place of the order of :meth:`contacts`."""
        for bucket in self._buckets:
            if place < len(bucket):
                return next(islice(bucket.values(), place, None)).contact
            place -= len(bucket)
        raise IndexError("there are fewer peers in the table")

    def touch(self, target: int, now: float) -> None:
        """A lookup went through the target's bucket."""
        index = self.bucket_index(target)
        if index < len(self._touched):
            self._touched[index] = now

    def stale_buckets(self, now: float) -> list[int]:
        """The buckets to refresh: unused for the refresh interval, down to the one behind the deepest full one."""
        horizon = now - self._params.refresh_interval
        return [index for index, at in enumerate(self._touched) if at <= horizon and index < self._depth()]

    def _depth(self) -> int:
        """Buckets deeper than this are covered by looking ourselves up."""
        full = [i for i, bucket in enumerate(self._buckets) if len(bucket) >= self._params.k // 2]
        return (full[-1] if full else 0) + 2

    def thin_buckets(self) -> list[int]:
        """The buckets that could hold more peers than they do, down to where looking ourselves up finds all."""
        depth = min(self._depth(), MAX_PREFIX_BITS, len(self._buckets) - 1)
        return [i for i, bucket in enumerate(self._buckets[:depth]) if len(bucket) < self._params.k]

    def bucket_sizes(self) -> list[int]:
        return [len(bucket) for bucket in self._buckets]
