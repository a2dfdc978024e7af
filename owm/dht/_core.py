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

from collections.abc import Iterable

from owm.dht._core_guards import PeerMemory, check_proof
from owm.dht._core_operation import Operation
from owm.dht._core_operations import Operations
from owm.dht._core_server import QueryRefused
from owm.dht._core_state import MAINTENANCE, Query
from owm.dht._core_types import (
    Contact,
    Kind,
    Message,
    MessageType,
    key_of,
)

__all__ = ["KademliaCore"]


class KademliaCore(Operations):
    """One peer's part of the DHT; see :class:`owm.dht._core_state.CoreState` for the arguments."""

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
            self._maintain_at = now + MAINTENANCE * self.random.uniform(0.9, 1.1)
            self._maintain(now)

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
    def _settle_failure(query: Query) -> None:
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
