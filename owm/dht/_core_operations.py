"""Starting operations and moving them on."""

from __future__ import annotations

from collections.abc import Iterable

from owm.dht._core_keyspace import MAX_PREFIX_BITS, preimage
from owm.dht._core_lookup import Lookup
from owm.dht._core_operation import FanOut, Operation
from owm.dht._core_state import CoreState, Query
from owm.dht._core_types import (
    KEY_BITS,
    Contact,
    Done,
    Kind,
    MessageType,
    key_of,
)

__all__ = ["Operations"]


class Operations(CoreState):
    """What a peer can want of the DHT. Each ``start_`` returns the operation's number; a Done effect ends it."""

    def start_find_peer(self, peer: bytes, now: float) -> int:
        """Look for a peer's addresses; ends as soon as somebody names it."""
        operation = self._operation(Kind.FIND_PEER, peer, now)
        self._search(operation, peer, operation.target, MessageType.FIND_NODE)
        return self._begin(operation, now)

    def start_get(self, key: bytes, now: float, *, region: bool = False) -> int:
        """Look for the newest value under ``key``."""
        operation = self._operation(Kind.GET, key, now)
        held = self.server.own.get(key) or self.server.records.get(key, now)
        validity = self.validator(key, held) if held else None
        if held and validity:
            operation.best, operation.sequence = held, validity.sequence
        self._search_or_cover(operation, MessageType.GET_VALUE, region)
        return self._begin(operation, now)

    def start_find_providers(self, key: bytes, limit: int, now: float, *, region: bool = False) -> int:
        """Look for up to ``limit`` providers of ``key``."""
        operation = self._operation(Kind.FIND_PROVIDERS, key, now)
        operation.limit = limit
        operation.note_providers(tuple(self.server.providers.get(key, limit, self.random, now)), limit)
        if key in self.provided:
            operation.note_providers((self.contact,), 1)
        self._search_or_cover(operation, MessageType.GET_PROVIDERS, region)
        return self._begin(operation, now)

    def start_put(self, key: bytes, value: bytes, now: float, *, own: bool = True, region: bool = False) -> int:
        """Store a value with the peers nearest to its key. ``own`` ones are kept here and stored again in time."""
        if own:
            self.server.own[key] = value
            self.published[key] = (now + self.params.republish_interval, region)
        operation = self._operation(Kind.PUT, key, now)
        operation.stored_value = value
        self._search_or_cover(operation, MessageType.FIND_NODE, region)
        return self._begin(operation, now)

    def start_provide(self, key: bytes, now: float, *, region: bool = False) -> int:
        """Say that we provide ``key``, now and again in time."""
        self.provided[key] = (now + self.params.reprovide_interval, region)
        operation = self._operation(Kind.PROVIDE, key, now)
        self._search_or_cover(operation, MessageType.FIND_NODE, region)
        return self._begin(operation, now)

    def unprovide(self, key: bytes) -> None:
        self.provided.pop(key, None)

    def start_bootstrap(self, seeds: Iterable[Contact], now: float) -> int:
        """Look ourselves up, through the table, ``seeds`` and the peers remembered."""
        operation = self._operation(Kind.REFRESH, self.contact.id, now)
        known = {contact.id: contact for contact in seeds}
        for contact in (*self.table.nearest(self.contact.key, self.params.k), *self.memory.contacts()):
            if len(known) < 2 * self.params.k:
                known.setdefault(contact.id, contact)
        # All of our neighbourhood shall know us, so all of it is asked.
        seeds = list(known.values())
        self._search(operation, self.contact.id, self.contact.key, MessageType.FIND_NODE, seeds, beta=self.params.k)
        operation.joins = True
        return self._begin(operation, now)

    def start_refresh(self, bucket: int, now: float) -> int:
        """Look for peers that share ``bucket`` leading bits with us and not the next."""
        bits = min(bucket + 1, MAX_PREFIX_BITS)
        flipped = self.contact.key ^ (1 << (KEY_BITS - 1 - min(bucket, MAX_PREFIX_BITS - 1)))
        key = preimage(flipped, bits)
        operation = self._operation(Kind.REFRESH, key, now)
        self._search(operation, key, operation.target, MessageType.FIND_NODE)
        return self._begin(operation, now)

    def start_merge(self, now: float) -> int | None:
        """Ask a remembered peer that is not in the table for our neighbourhood (D13).

        When it lives in a part of the network that we have lost, its neighbours are strangers to us: the lookup makes
        both sides know each other, and theirs spread it on.
        """
        strangers = [contact for contact in self.memory.contacts() if contact.key not in self.table]
        if not strangers:
            return None
        operation = self._operation(Kind.REFRESH, self.contact.id, now)
        operation.split = True
        self.merges += 1
        seeds = self.random.sample(strangers, min(3, len(strangers)))
        self._search(operation, self.contact.id, self.contact.key, MessageType.FIND_NODE, seeds)
        return self._begin(operation, now)

    def _operation(self, kind: Kind, key: bytes, now: float) -> Operation:
        self._next += 1
        operation = Operation(self._next, kind, key, key_of(key), now, now + self.params.lookup_timeout)
        self.operations[operation.id] = operation
        self._ends.append((operation.deadline, operation.id))
        return operation

    def _search(
        self,
        operation: Operation,
        key: bytes,
        target: int,
        kind: MessageType,
        seeds: list[Contact] | None = None,
        *,
        exhaust: int = 0,
        beta: int | None = None,
    ) -> None:
        params = self.params
        if seeds is None:
            seeds = self.table.nearest(target, params.k)
        many = exhaust or operation.kind in (Kind.GET, Kind.FIND_PROVIDERS)
        paths = params.paths if many else 1
        lookup = Lookup(target, seeds, params, own=self.contact.key, paths=paths, exhaust=exhaust, beta=beta)
        operation.lookups.append(lookup)
        operation.messages.append(self._ask(kind, key))
        self.lookups += 1

    def _search_or_cover(self, operation: Operation, kind: MessageType, region: bool) -> None:
        """The usual lookup; or for a region, lookups that cover all of it, then everybody in it is asked (D3, D4).

        Sybils crowd around the key, so looking for the key alone finds nobody else. The region's size follows from
        the network's, which they cannot shrink, and its other parts lead to the honest peers in it.
        """
        if not region:
            self._search(operation, operation.key, operation.target, kind)
            return
        params = self.params
        size = max(self.size.size or 0.0, float(len(self.table)), 1.0)
        operation.radius = min(int((1 << 53) * min(1.0, params.region_size / size)) << (KEY_BITS - 53), 1 << KEY_BITS)
        step = operation.radius // params.region_parts
        self._search(operation, operation.key, operation.target, MessageType.FIND_NODE, exhaust=step)
        if size > params.region_size:
            bits = min(MAX_PREFIX_BITS, KEY_BITS - step.bit_length() + 1)
            for part in range(1, params.region_parts):
                key = preimage(operation.target ^ (part * step + (step >> 1)), bits)
                self._search(operation, key, key_of(key), MessageType.FIND_NODE, exhaust=step)

    def _begin(self, operation: Operation, now: float) -> int:
        self.table.touch(operation.target, now)
        if operation.kind is Kind.FIND_PEER and operation.target == self.contact.key:
            self._finish(operation, now)
        else:
            self._advance(operation, now)
        return operation.id

    def _advance(self, operation: Operation, now: float) -> None:
        """Send what may be sent; end what has ended."""
        if operation.fan_out is None:
            ended = True
            for lookup, message in zip(operation.lookups, operation.messages, strict=True):
                for candidate in lookup.next_queries():
                    self._send(Query(candidate.contact, operation, lookup, candidate), message, now)
                ended = lookup.ended and ended
            if not ended and not self._near_enough(operation):
                return
            if not self._start_fan_out(operation):
                self._finish(operation, now)
                return
        fan_out = operation.fan_out
        if fan_out is not None:
            for contact in fan_out.next_targets():
                self._send(Query(contact, operation, fan_out=fan_out), fan_out.message, now)
            if fan_out.ended:
                self._finish(operation, now)

    def _near_enough(self, operation: Operation) -> bool:
        """Optimistic end of an ordinary store: as many peers as wanted are known about where the k nearest lie."""
        if operation.kind not in (Kind.PUT, Kind.PROVIDE) or operation.radius:
            return False
        size = self.size.size
        if size is None:
            return False
        share = min(1.0, 1.2 * self.params.k / (size + 1.0))
        return operation.lookups[0].reached(int(share * (1 << 53)) << (KEY_BITS - 53), self.params.k)

    def _start_fan_out(self, operation: Operation) -> bool:
        """The second half of stores and of region operations; False where there is none."""
        kind = operation.kind
        if kind is Kind.PUT:
            message = self._ask(MessageType.PUT_VALUE, operation.key, operation.stored_value)
        elif kind is Kind.PROVIDE:
            message = self._ask(MessageType.ADD_PROVIDER, operation.key)
            message.providers = (self.contact,)
        elif operation.radius:
            message = self._ask(MessageType.GET_VALUE if kind is Kind.GET else MessageType.GET_PROVIDERS, operation.key)
        else:
            return False
        if operation.radius:
            inside: dict[bytes, Contact] = {}
            for lookup in operation.lookups:
                for contact in lookup.nearest(1024, answered=False):
                    if contact.key ^ operation.target < operation.radius:
                        inside[contact.id] = contact
            targets, wanted = list(inside.values()), None
            if not targets:
                targets = operation.lookups[0].nearest(self.params.k, answered=False)
        else:
            targets, wanted = operation.lookups[0].nearest(2 * self.params.k, answered=False), self.params.k
        operation.fan_out = FanOut(message, targets, wanted)
        return True

    def _finish(self, operation: Operation, now: float) -> None:
        del self.operations[operation.id]
        count = self.params.k
        closest: list[Contact] = []
        if operation.lookups:
            lookup = operation.lookups[0]
            closest = lookup.nearest(count, answered=True)
            if not operation.radius and not operation.split:
                self.size.note(lookup.target, lookup.nearest(count, answered=False))
        peer = self._found_peer(operation) if operation.kind is Kind.FIND_PEER else None
        if operation.kind is Kind.GET and operation.best is not None and operation.sequence >= 0:
            message = self._ask(MessageType.PUT_VALUE, operation.key, operation.best)
            for contact in operation.outdated[:5]:
                self._send(Query(contact, None), message, now)
        if operation.joins:
            for bucket in self.table.thin_buckets():
                self.start_refresh(bucket, now)
        if operation.split and operation.strangers * 2 > max(1, len(closest)):
            self.splits += 1
        self._effects.append(Done(operation.id, operation.result(closest, peer, now)))

    def _found_peer(self, operation: Operation) -> Contact | None:
        if operation.target == self.contact.key:
            return self.contact
        entry = self.table.get(operation.target)
        if entry is not None and entry.contact.addresses and not entry.failures:
            return entry.contact
        named = operation.lookups[0].named(operation.target) if operation.lookups else None
        if named is not None and named.addresses:
            return named
        return entry.contact if entry is not None and entry.contact.addresses else None
