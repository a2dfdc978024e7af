"""Starting operations and moving them on."""

from __future__ import annotations

from collections.abc import Iterable

from owm.dht._core_keyspace import preimage
from owm.dht._core_lookup import Lookup
from owm.dht._core_operation import FanOut, Operation
from owm.dht._core_state import CoreState, Query, Upkeep
from owm.dht._core_types import (
    KEY_BITS,
    Contact,
    Done,
    Kind,
    MessageType,
    key_of,
)

__all__ = ["Operations"]

_MERGE_SEEDS = 6  # remembered peers asked in one attempt to merge
_RETRY_AFTER = 10.0  # seconds until what nobody took is offered again


class Operations(CoreState):
    """What a peer can want of the DHT. Each ``start_`` returns the operation's number; a Done effect ends it."""

    def start_find_peer(self, peer: bytes, now: float) -> int:
        """Look for a peer's addresses; ends as soon as it has answered at some that were named."""
        operation = self._operation(Kind.FIND_PEER, peer, now)
        entry = self.table.get(operation.target)
        if entry is not None and operation.whereabouts is not None:
            operation.whereabouts.note(entry.contact)
        self._search(operation, peer, operation.target, MessageType.FIND_NODE)
        return self._begin(operation, now)

    def start_get(self, key: bytes, now: float, *, region: bool = False) -> int:
        """Look for the newest value under ``key``."""
        operation = self._operation(Kind.GET, key, now)
        held = self.server.value(key, now)
        validity = self.validator(key, held[0]) if held is not None else None
        if held is not None and validity is not None and not validity.expired:
            operation.best, operation.sequence = held
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
            self.published.setdefault(key, Upkeep(now, region)).due = now + self.params.republish_interval
        operation = self._operation(Kind.PUT, key, now)
        operation.stored_value = value
        self._search_or_cover(operation, MessageType.FIND_NODE, region)
        return self._begin(operation, now)

    def start_provide(self, key: bytes, now: float, *, region: bool = False) -> int:
        """Say that we provide ``key``, now and again in time."""
        self.provided.setdefault(key, Upkeep(now, region)).due = now + self.params.reprovide_interval
        operation = self._operation(Kind.PROVIDE, key, now)
        self._search_or_cover(operation, MessageType.FIND_NODE, region)
        return self._begin(operation, now)

    def unprovide(self, key: bytes) -> None:
        self.provided.pop(key, None)

    def start_bootstrap(self, seeds: Iterable[Contact], now: float) -> int:
        """Look ourselves up, through ``seeds`` and, apart from these, through the table and the peers remembered.

        ``seeds``, the most trusted first, are whoever is connected; that may be attackers who were there first after a
        restart. So those known from before get half of the places, and a path of their own (D2).
        """
        operation = self._operation(Kind.REFRESH, self.contact.id, now)
        k = self.params.k
        offered = list({contact.id: contact for contact in seeds}.values())
        names = {contact.id for contact in offered[:k]}
        known = [*self.table.nearest(self.contact.key, k // 2), *self.memory.contacts()]
        anchors = [c for c in {c.id: c for c in known}.values() if c.id not in names][: max(k, 2 * k - len(offered))]
        offered = offered[: 2 * k - len(anchors)]
        paths = 2 if offered and anchors else 1
        mixed = [*offered, *anchors]
        if paths == 2:  # the paths are dealt their seeds in turn
            common = min(len(offered), len(anchors))
            mixed = [one for pair in zip(offered, anchors, strict=False) for one in pair]
            mixed += offered[common:] + anchors[common:]
        # All of our neighbourhood shall know us, so all of it is asked.
        self._search(operation, self.contact.id, self.contact.key, MessageType.FIND_NODE, mixed, beta=k, paths=paths)
        operation.joins = True
        return self._begin(operation, now)

    def start_refresh(self, bucket: int, now: float) -> int:
        """Look for peers that share ``bucket`` leading bits with us and not the next."""
        bits = min(bucket + 1, self.prefix_bits)
        flipped = self.contact.key ^ (1 << (KEY_BITS - bits))
        key = preimage(flipped, bits)
        operation = self._operation(Kind.REFRESH, key, now)
        self._search(operation, key, operation.target, MessageType.FIND_NODE)
        return self._begin(operation, now)

    def start_merge(self, now: float) -> int | None:
        """Ask a remembered peer that is not in the table for our neighbourhood (D13).

        When it lives in a part of the network that we have lost, its neighbours are strangers to us: the lookup makes
        both sides know each other, and theirs spread it on.
        """
        seeds = [c for c in self.memory.sample(self.random, 2 * _MERGE_SEEDS) if c.key not in self.table]
        if not seeds:
            return None
        operation = self._operation(Kind.REFRESH, self.contact.id, now)
        operation.split = True
        self.merges += 1
        self._search(operation, self.contact.id, self.contact.key, MessageType.FIND_NODE, seeds[:_MERGE_SEEDS])
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
        paths: int = 0,
        limit: int = 0,
    ) -> None:
        params = self.params
        if seeds is None:
            seeds = self.table.nearest(target, params.k)
        if not paths:
            paths = params.paths if exhaust or operation.kind in (Kind.GET, Kind.FIND_PROVIDERS) else 1
        lookup = Lookup(
            target,
            seeds,
            params,
            own=self.contact.key,
            paths=paths,
            exhaust=exhaust,
            beta=beta,
            limit=limit,
            sought=operation.kind is Kind.FIND_PEER,
        )
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
        if self.size.size is None:
            # Without it the region could be half of the network. Some point tells; at the key there may be a crowd.
            operation.unsized = True
            point = b"\x12\x20" + self.random.randbytes(32)
            self._search(operation, point, key_of(point), MessageType.FIND_NODE, paths=1)
        else:
            self._cover(operation)

    def _cover(self, operation: Operation) -> None:
        params = self.params
        size = max(self.size.size or 0.0, float(len(self.table)), 1.0)
        operation.radius = min(int((1 << 53) * min(1.0, params.region_size / size)) << (KEY_BITS - 53), 1 << KEY_BITS)
        step = operation.radius // params.region_parts
        parts = params.region_parts if size > params.region_size else 1
        limit = params.region_queries // (2 * parts)
        self._search(operation, operation.key, operation.target, MessageType.FIND_NODE, exhaust=step, limit=limit)
        bits = min(self.prefix_bits, KEY_BITS - step.bit_length() + 1)
        keys = [preimage(operation.target ^ (part * step + (step >> 1)), bits) for part in range(1, parts)]
        for key in dict.fromkeys(keys):  # with few bits several parts share one
            self._search(operation, key, key_of(key), MessageType.FIND_NODE, exhaust=step, limit=limit)

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
            whereabouts = operation.whereabouts
            if whereabouts is not None:
                while (contact := whereabouts.next_probe()) is not None:
                    self._send(Query(contact, operation, probe=True), operation.messages[0], now)
                ended = ended and not whereabouts.open
            if ended and operation.kind is Kind.FIND_PEER and any([lookup.widen() for lookup in operation.lookups]):
                self._advance(operation, now)  # the few nearest may be liars, and only now does it matter
                return
            if not ended and not self._near_enough(operation):
                return
            if operation.unsized:
                operation.unsized = False
                operation.messages.clear()
                for lookup in operation.lookups:
                    self.size.note(lookup.target, lookup.nearest(self.params.k, answered=False))
                operation.lookups.clear()
                self._cover(operation)
                self._advance(operation, now)
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
        if operation.kind not in (Kind.PUT, Kind.PROVIDE) or operation.radius or operation.unsized:
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
            targets, wanted = self._inside(operation), None
            if not targets:
                targets = operation.lookups[0].nearest(self.params.k, answered=False)
        else:
            targets, wanted = operation.lookups[0].nearest(2 * self.params.k, answered=False), self.params.k
        operation.fan_out = FanOut(message, targets, wanted)
        return True

    def _inside(self, operation: Operation) -> list[Contact]:
        """Whom to ask in the region: all, or when they are too many as many of each part, for Sybils crowd in one."""
        inside: dict[bytes, Contact] = {}
        for lookup in operation.lookups:
            for contact in lookup.nearest(1024, answered=False):
                if contact.key ^ operation.target < operation.radius:
                    inside[contact.id] = contact
        most = self.params.region_queries // 2
        if len(inside) <= most:
            return list(inside.values())
        step = operation.radius // self.params.region_parts
        parts: dict[int, list[Contact]] = {}
        for contact in inside.values():
            parts.setdefault((contact.key ^ operation.target) // step, []).append(contact)
        for part in parts.values():
            self.random.shuffle(part)
        chosen: list[Contact] = []
        while len(chosen) < most:
            for part in parts.values():
                if part:
                    chosen.append(part.pop())
        return chosen

    def _finish(self, operation: Operation, now: float) -> None:
        del self.operations[operation.id]
        count = self.params.k
        closest: list[Contact] = []
        if operation.lookups:
            lookup = operation.lookups[0]
            closest = lookup.nearest(count, answered=True)
            if not operation.radius and not operation.split and not lookup.cut_short:
                self.size.note(lookup.target, lookup.nearest(count, answered=False))
        if operation.target == self.contact.key and operation.kind is Kind.FIND_PEER:
            operation.found = self.contact
        if operation.kind is Kind.GET and operation.best is not None and operation.sequence >= 0:
            message = self._ask(MessageType.PUT_VALUE, operation.key, operation.best)
            for contact in operation.outdated[:5]:
                self._send(Query(contact, None), message, now)
        if operation.joins and operation.strangers * 2 >= len(closest):  # what is mostly known needs no second look
            for bucket in self.table.thin_buckets():
                self.start_refresh(bucket, now)
        if operation.split and operation.strangers * 2 > max(1, len(closest)):
            self.splits += 1
        result = operation.result(closest, now)
        if operation.kind in (Kind.PUT, Kind.PROVIDE):
            self._note_stored(operation, result.stored, now)
        self._effects.append(Done(operation.id, result))

    def _note_stored(self, operation: Operation, stored: int, now: float) -> None:
        """What nobody took is offered again soon: after ten seconds, then after twice as long each time."""
        ours = self.provided if operation.kind is Kind.PROVIDE else self.published
        upkeep = ours.get(operation.key)
        if upkeep is None:
            return
        if stored:
            upkeep.tries = 0
            return
        upkeep.due = min(upkeep.due, now + _RETRY_AFTER * 2.0 ** min(upkeep.tries, 16))
        upkeep.tries += 1
        self._maintain_at = min(self._maintain_at, upkeep.due)
