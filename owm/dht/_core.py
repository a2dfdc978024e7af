"""The Kademlia core: events in, effects out; no clock, no I/O, no randomness of its own.

The peer's trio service and the simulator drive the same class::

    answer = core.receive_query(peer, message, now)        # somebody asked us
    operation = core.start_get(key, now)                   # we want something
    for effect in core.drain():                            # after every call
        ...                                                # SendQuery, Done, Misbehaved
    core.receive_response(query_id, message, now)          # or core.query_failed(query_id, now)
    core.tick(now)                                         # at core.next_deadline() at the latest
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

from owm.dht._core_guards import PeerMemory, Reputation, check_proof
from owm.dht._core_keyspace import MAX_PREFIX_BITS, SizeEstimator, preimage
from owm.dht._core_lookup import Candidate, Lookup
from owm.dht._core_operation import FanOut, Operation
from owm.dht._core_server import QueryRefused, Server
from owm.dht._core_table import RoutingTable
from owm.dht._core_types import (
    KEY_BITS,
    Contact,
    DhtParams,
    Done,
    Effect,
    GroupOf,
    Kind,
    Message,
    MessageType,
    Misbehaved,
    SendQuery,
    Validator,
    key_of,
)

__all__ = ["KademliaCore"]

_MAINTENANCE = 60.0
_NEVER = float("inf")


class _Query:
    __slots__ = ("candidate", "contact", "fan_out", "lookup", "operation", "slow")

    def __init__(
        self,
        contact: Contact,
        operation: Operation | None,
        lookup: Lookup | None = None,
        candidate: Candidate | None = None,
        fan_out: FanOut | None = None,
    ) -> None:
        self.contact = contact
        self.operation = operation
        self.lookup = lookup
        self.candidate = candidate
        self.fan_out = fan_out
        self.slow = False


class KademliaCore:
    """One peer's part of the DHT.

    Args:
        contact: ourselves, with the addresses that others may dial.
        params: see :class:`DhtParams`; all peers of a network use the same.
        random: the source of all chance.
        validator: judges the values that we store and that we are given.
        group_of: the subnet group of an address, None for exempt ones; without it diversity is off.
        network: what the puzzle is bound to.
        proof: our answer to the puzzle, where there is one.
    """

    def __init__(
        self,
        contact: Contact,
        params: DhtParams,
        random: Random,
        validator: Validator,
        *,
        group_of: GroupOf | None = None,
        network: str = "",
        proof: bytes = b"",
    ) -> None:
        self.contact = contact
        self.params = params
        self.random = random
        self.validator = validator
        self.network = network
        self.proof = proof
        self.table = RoutingTable(contact.key, params, group_of)
        self.server = Server(contact, self.table, params, random, validator, group_of)
        self.memory = PeerMemory(params, group_of)
        self.reputation = Reputation(params)
        self.size = SizeEstimator(params.k)
        self.operations: dict[int, Operation] = {}
        self.provided: dict[bytes, tuple[float, bool]] = {}  # key: (when to provide again, in its region)
        self.published: dict[bytes, tuple[float, bool]] = {}  # the same for our own records
        self.dialled_by: set[str] = set()
        self.lookups = self.sent = self.failed = self.served = self.merges = self.splits = 0
        self._effects: list[Effect] = []
        self._queries: dict[int, _Query] = {}
        self._slow: deque[tuple[float, int]] = deque()
        self._timeouts: deque[tuple[float, int]] = deque()
        self._ends: deque[tuple[float, int]] = deque()
        self._next = 0
        self._verifying: set[bytes] = set()
        self._maintain_at = random.uniform(0.5, 1.0) * _MAINTENANCE
        self._sweep_at = params.sweep_interval
        self._merge_at = random.uniform(0.5, 1.5) * params.merge_interval

    # What drives the core

    def drain(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float:
        """When :meth:`tick` must be called next."""
        queries = self._queries
        while self._slow and self._slow[0][1] not in queries:
            self._slow.popleft()
        while self._timeouts and self._timeouts[0][1] not in queries:
            self._timeouts.popleft()
        while self._ends and self._ends[0][1] not in self.operations:
            self._ends.popleft()
        return min(
            self._maintain_at,
            self._slow[0][0] if self._slow else _NEVER,
            self._timeouts[0][0] if self._timeouts else _NEVER,
            self._ends[0][0] if self._ends else _NEVER,
        )

    def tick(self, now: float) -> None:
        """Act on everything that is due."""
        while self._slow and self._slow[0][0] <= now:
            self._became_slow(self._slow.popleft()[1], now)
        while self._timeouts and self._timeouts[0][0] <= now:
            query_id = self._timeouts.popleft()[1]
            if query_id in self._queries:
                self.query_failed(query_id, now)
        while self._ends and self._ends[0][0] <= now:
            operation = self.operations.get(self._ends.popleft()[1])
            if operation is not None:
                self._finish(operation, now)
        if now >= self._maintain_at:
            self._maintain_at = now + _MAINTENANCE * self.random.uniform(0.9, 1.1)
            self._maintain(now)

    @property
    def serving(self) -> bool:
        """Whether we are in server mode: peers of enough subnet groups have dialled us (D15)."""
        return len(self.dialled_by) >= self.params.dial_back_groups

    def dialled_back(self, group: str) -> None:
        """A peer of that subnet group has opened a connection to us."""
        if len(self.dialled_by) < 64:
            self.dialled_by.add(group)

    def move(self, contact: Contact) -> None:
        """Our addresses have changed."""
        self.contact = self.server.contact = contact

    # Answering

    def receive_query(self, peer: bytes, message: Message, now: float) -> Message | None:
        """Answer an authenticated peer; None where the protocol has no response. Raises QueryRefused."""
        if not self.serving:
            raise QueryRefused("we are not in server mode")
        try:
            answer = self.server.answer(peer, message, message.key in self.provided, now)
        except QueryRefused as refused:
            if refused.blame == "invalid":
                entry = self.table.get(key_of(peer))
                if entry is not None:
                    self.reputation.blame(entry.groups, 1.0, now)
            raise
        self.served += 1
        sender = message.sender
        if sender is not None and sender.id == peer:
            self._greeted(sender, message.proof, now)
        if answer is not None:
            answer.sender, answer.proof = self.contact, self.proof
        return answer

    def _greeted(self, sender: Contact, proof: bytes, now: float) -> None:
        """Somebody in server mode has asked us: check that it answers, then it may enter the table."""
        entry = self.table.get(sender.key)
        if entry is not None and (not sender.addresses or entry.contact.addresses == sender.addresses):
            entry.seen = now
            return
        if entry is None and not self._welcome(sender, now):
            return
        if not check_proof(self.network, sender.id, proof, self.params.puzzle_bits):
            return
        if sender.id not in self._verifying and len(self._verifying) < self.params.verify_limit:
            self.verify(sender, now)

    def meet(self, contact: Contact, now: float) -> None:
        """A connected peer is said to serve the DHT: check that it does, if the table would take it."""
        if contact.key not in self.table and self._welcome(contact, now) and not self._verifying:
            self.verify(contact, now)

    def verify(self, contact: Contact, now: float) -> None:
        """Ask a peer something; if it answers it may enter the table."""
        if contact.id == self.contact.id:
            return
        self._verifying.add(contact.id)
        self._send(_Query(contact, None), self._ask(MessageType.FIND_NODE, self.contact.id), now)

    def _welcome(self, contact: Contact, now: float) -> bool:
        return self.table.has_room(contact) and self.reputation.admits(self.table.groups_of(contact), now)

    def _enter(self, contact: Contact, message: Message | None, now: float) -> bool:
        """A peer has answered us; returns whether it is new to the table."""
        sender = message.sender if message is not None else None
        if sender is not None and sender is not contact and sender.id == contact.id and sender.addresses:
            contact = sender  # what it says of itself counts more than what others said
        if not contact.addresses:
            return False
        if contact.key in self.table:
            self.table.heard(contact, now)
            return False
        if self.params.puzzle_bits:
            proof = message.proof if message is not None else b""
            if not check_proof(self.network, contact.id, proof, self.params.puzzle_bits):
                return False
        groups = self.table.groups_of(contact)
        if (groups and not self.reputation.admits(groups, now)) or not self.table.heard(contact, now):
            return False
        if groups:
            self.reputation.entered(groups, now)
        self.memory.forget(contact.id)
        return True

    # Asking

    def _ask(self, kind: MessageType, key: bytes, value: bytes | None = None) -> Message:
        sender = self.contact if self.serving else None
        return Message(kind, key, value, sender=sender, proof=self.proof if sender else b"")

    def _send(self, query: _Query, message: Message, now: float) -> None:
        self._next += 1
        query_id = self._next
        self._queries[query_id] = query
        deadline = now + self.params.query_timeout
        if query.operation is not None:
            query.operation.queries += 1
            self._slow.append((now + self.params.slow_after, query_id))
        self._timeouts.append((deadline, query_id))
        self.sent += 1
        self._effects.append(SendQuery(query_id, query.contact, message, deadline))

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
                    self._send(_Query(candidate.contact, operation, lookup, candidate), message, now)
                ended = lookup.ended and ended
            if not ended and not self._near_enough(operation):
                return
            if not self._start_fan_out(operation):
                self._finish(operation, now)
                return
        fan_out = operation.fan_out
        if fan_out is not None:
            for contact in fan_out.next_targets():
                self._send(_Query(contact, operation, fan_out=fan_out), fan_out.message, now)
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

    # What came of queries

    def receive_response(self, query_id: int, message: Message | None, now: float) -> None:
        """A response, or None when a message without response was sent."""
        query = self._queries.pop(query_id, None)
        if query is None:
            return
        contact, operation = query.contact, query.operation
        self._verifying.discard(contact.id)
        new = self._enter(contact, message, now) if message is not None else False
        if operation is None or operation.id not in self.operations:
            return
        operation.strangers += new
        if message is not None and not self._note_answer(operation, message, contact, now):
            self.failed += 1
            self._settle_failure(query)
        elif query.fan_out is not None:
            query.fan_out.answered += 1
            if not query.slow:
                query.fan_out.pending -= 1
        elif query.lookup is not None and query.candidate is not None:
            if message is not None:
                found = message.value is not None or bool(message.providers)
                query.lookup.answered(query.candidate, message.closer, found=found)
            if self._has_enough(operation, message):
                query.lookup.stop()
        self._advance(operation, now)

    def _note_answer(self, operation: Operation, message: Message, contact: Contact, now: float) -> bool:
        """Take what the answer holds; False when it is invalid."""
        if message.type is MessageType.GET_VALUE and message.value is not None:
            validity = None
            if len(message.value) <= self.params.max_value:
                validity = self.validator(operation.key, message.value)
            if validity is None:
                self._blame(contact, "an invalid record", now)
                return False
            operation.note_value(message.value, validity.sequence, contact)
        elif message.type is MessageType.GET_PROVIDERS and message.providers:
            operation.answers += 1
            if not operation.note_providers(message.providers, self.params.k * 4):
                operation.answers += 1  # nothing new: the answers begin to repeat
        return True

    def _has_enough(self, operation: Operation, message: Message | None) -> bool:
        kind = operation.kind
        if kind is Kind.GET:
            enough = operation.answers >= self.params.quorum
        elif kind is Kind.FIND_PROVIDERS:
            full = len(operation.providers) >= operation.limit and operation.answers >= 2
            enough = full or operation.answers >= self.params.quorum + 1
        elif kind is Kind.FIND_PEER:
            enough = message is not None and any(c.id == operation.key and c.addresses for c in message.closer)
        else:
            return False
        if enough:
            for lookup in operation.lookups:
                lookup.stop()
        return enough

    def query_failed(self, query_id: int, now: float) -> None:
        """A query could not be sent, or was not answered in time."""
        query = self._queries.pop(query_id, None)
        if query is None:
            return
        self.failed += 1
        self._verifying.discard(query.contact.id)
        evicted = self.table.failed(query.contact.key)
        if evicted is not None:
            self.memory.add(evicted)
        operation = query.operation
        if operation is not None and operation.id in self.operations:
            self._settle_failure(query)
            self._advance(operation, now)

    @staticmethod
    def _settle_failure(query: _Query) -> None:
        if query.fan_out is not None:
            if not query.slow:
                query.fan_out.pending -= 1
        elif query.lookup is not None and query.candidate is not None:
            query.lookup.failed(query.candidate)

    def _became_slow(self, query_id: int, now: float) -> None:
        query = self._queries.get(query_id)
        if query is None or query.operation is None or query.operation.id not in self.operations:
            return
        query.slow = True
        if query.fan_out is not None:
            query.fan_out.pending -= 1
        elif query.lookup is not None and query.candidate is not None:
            query.lookup.slow(query.candidate)
        self._advance(query.operation, now)

    def _blame(self, contact: Contact, reason: str, now: float) -> None:
        self.table.remove(contact.key)
        self.reputation.blame(self.table.groups_of(contact), 5.0, now)
        self._effects.append(Misbehaved(contact.id, reason))

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
                self._send(_Query(contact, None), message, now)
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

    # Upkeep

    def _maintain(self, now: float) -> None:
        if now >= self._sweep_at:
            self._sweep_at = now + self.params.sweep_interval
            self.server.records.sweep(now)
            self.server.providers.sweep(now)
        for bucket in self.table.stale_buckets(now)[:2]:
            self.start_refresh(bucket, now)
        for key, (due, region) in list(self.provided.items()):
            if due <= now:
                self.start_provide(key, now, region=region)
        for key, (due, region) in list(self.published.items()):
            if due <= now:
                value = self.server.own[key]
                if self.validator(key, value) is None:
                    del self.server.own[key], self.published[key]
                else:
                    self.start_put(key, value, now, region=region)
        if now >= self._merge_at:
            self._merge_at = now + self.params.merge_interval * self.random.uniform(0.9, 1.1)
            self.start_merge(now)

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

    def remember(self, contacts: Iterable[Contact]) -> None:
        """Peers known from an earlier run or from the settings: seeds, not yet trusted."""
        for contact in contacts:
            if contact.id != self.contact.id and contact.key not in self.table:
                self.memory.add(contact)

    def export_peers(self) -> list[Contact]:
        """Peers worth remembering over a restart: the longest known first, a few of each subnet (D2, D14)."""
        chosen = PeerMemory(self.params, self.table.group_of)
        for contact in (*self.table.contacts(), *self.memory.contacts()):
            if len(chosen) < self.params.remembered:
                chosen.add(contact)
        return chosen.contacts()
