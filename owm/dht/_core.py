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

_ONLINE = 900.0  # seconds since anybody answered after which a failure may well be ours


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

    def admit_query(self, peer: bytes, now: float) -> None:
        """Whether a peer may ask now, to be known before its message is read. Raises QueryRefused."""
        if not self.serving:
            raise QueryRefused("we are not in server mode")
        self.server.admit(peer, now)

    def receive_query(
        self, peer: bytes, message: Message, now: float, observed: str | None = None, *, admitted: bool = False
    ) -> Message | None:
        """Answer an authenticated peer; None where the protocol has no response.

        Args:
            observed: the far end of the connection, by which subnets are told apart; None: where it cannot be seen.
            admitted: :meth:`admit_query` was called for it.

        Raises:
            QueryRefused: there is no answer.
        """
        if not admitted:
            self.admit_query(peer, now)
        provides = message.type is MessageType.ADD_PROVIDER
        groups = self._groups_of_asker(peer, message, observed) if provides else ()
        try:
            answer = self.server.answer(peer, message, message.key in self.provided, groups, now)
        except QueryRefused as refused:
            if refused.blame == "invalid":
                self.reputation.blame(self._groups_of_asker(peer, message, observed), 1.0, now)
            raise
        self.served += 1
        sender = message.sender
        if sender is not None and sender.id == peer:
            self._greeted(sender, message.proof, observed, now)
        if answer is not None:
            answer.sender, answer.proof = self.contact, self.proof
        return answer

    def _groups_of_asker(self, peer: bytes, message: Message, observed: str | None) -> tuple[str, ...]:
        if observed is not None:
            return self.table.groups_at((observed,))
        entry = self.table.get(key_of(peer))
        if entry is not None:
            return entry.groups
        named = next((contact for contact in message.providers if contact.id == peer), None)
        return self.table.groups_of(named) if named is not None else ()

    def _greeted(self, sender: Contact, proof: bytes, observed: str | None, now: float) -> None:
        """Somebody in server mode has asked us: check that it answers, then it may enter the table."""
        entry = self.table.get(sender.key)
        if entry is not None and (not sender.addresses or entry.contact.addresses == sender.addresses):
            entry.seen = now
            return
        if entry is None and not self._welcome(sender, observed, now):
            return
        if not check_proof(self.network, sender.id, proof, self.params.puzzle_bits):
            return
        if sender.id not in self._verifying and len(self._verifying) < self.params.verify_limit:
            self.verify(sender, now)

    def receive_response(self, query_id: int, message: Message | None, now: float, observed: str | None = None) -> None:
        """A response, or None when a message without response was sent.

        ``observed``: the far end of the connection; None: the contact was reached where it was said to be.
        """
        query = self._queries.pop(query_id, None)
        if query is None:
            return
        contact, operation = query.contact, query.operation
        self._answered_at = now
        self._verifying.discard(contact.id)
        new = self._enter(contact, message, observed, now) if message is not None else False
        if operation is None or operation.id not in self.operations:
            return
        operation.strangers += new
        if query.probe:
            self._reached(query, operation, message, observed, now)
            return
        if message is not None and not self._note_answer(operation, message, contact, observed, now):
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
            if self._has_enough(operation):
                query.lookup.stop()
        self._advance(operation, now)

    def _reached(
        self, query: Query, operation: Operation, message: Message | None, observed: str | None, now: float
    ) -> None:
        """The sought peer is where it was said to be. What it says of itself counts, else where we saw it."""
        contact = query.contact
        sender = message.sender if message is not None else None
        if sender is not None and sender.id == contact.id and sender.addresses:
            contact = sender
        elif observed is not None and operation.whereabouts is not None and operation.whereabouts.names(observed):
            contact = Contact(contact.id, (observed,), contact.key)  # the others might be a liar's additions
        operation.found = contact
        for lookup in operation.lookups:
            lookup.stop()
        self._finish(operation, now)

    def _note_answer(
        self, operation: Operation, message: Message, contact: Contact, observed: str | None, now: float
    ) -> bool:
        """Take what the answer holds; False when it is invalid."""
        if message.type is MessageType.GET_VALUE and message.value is not None:
            validity = None
            if len(message.value) <= self.params.max_value:
                validity = self.validator(operation.key, message.value)
            if validity is None:
                self._blame(contact, observed, "an invalid record", now)
                return False
            if validity.expired:
                message.value = None  # as good as none
            else:
                operation.note_value(message.value, validity.sequence, contact)
        elif message.type is MessageType.GET_PROVIDERS and message.providers:
            operation.answers += 1
            if not operation.note_providers(message.providers, self.params.k * 4):
                operation.answers += 1  # nothing new: the answers begin to repeat
        elif operation.whereabouts is not None:
            named = next((c for c in message.closer if c.id == operation.key), None)
            if named is not None:
                operation.whereabouts.note(named)
        return True

    def _has_enough(self, operation: Operation) -> bool:
        kind = operation.kind
        if kind is Kind.GET:
            enough = operation.answers >= self.params.quorum
        elif kind is Kind.FIND_PROVIDERS:
            full = len(operation.providers) >= operation.limit and operation.answers >= 2
            enough = full or operation.answers >= self.params.quorum + 1
        else:
            return False
        if enough:
            for lookup in operation.lookups:
                lookup.stop()
        return enough

    def query_failed(self, query_id: int, now: float, observed: str | None = None, *, ours: bool = False) -> None:
        """A query could not be sent, or was not answered in time.

        Args:
            observed: where the peer was reached all the same; None: it was not.
            ours: it was our own doing, and says nothing about the peer.
        """
        query = self._queries.pop(query_id, None)
        if query is None:
            return
        self.failed += 1
        contact = query.contact
        self._verifying.discard(contact.id)
        if not ours:
            evicted = self.table.failed(contact.key)
            if evicted is not None:
                self.memory.add(evicted.contact, evicted.groups)
            elif now - self._answered_at < _ONLINE:
                self.memory.failed(contact.id)
        operation = query.operation
        if operation is not None and operation.id in self.operations:
            if query.probe and observed is not None:
                self._reached(query, operation, None, observed, now)
                return
            self._settle_failure(query)
            self._advance(operation, now)

    @staticmethod
    def _settle_failure(query: Query) -> None:
        if query.probe:
            whereabouts = query.operation.whereabouts if query.operation is not None else None
            if whereabouts is not None:
                whereabouts.open -= 1
                whereabouts.pending -= not query.slow
        elif query.fan_out is not None:
            if not query.slow:
                query.fan_out.pending -= 1
        elif query.lookup is not None and query.candidate is not None:
            query.lookup.failed(query.candidate)

    def _became_slow(self, query_id: int, now: float) -> None:
        query = self._queries.get(query_id)
        if query is None or query.operation is None or query.operation.id not in self.operations:
            return
        query.slow = True
        if query.probe and query.operation.whereabouts is not None:
            query.operation.whereabouts.pending -= 1
        elif query.fan_out is not None:
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
        for key, upkeep in list(self.provided.items()):
            if upkeep.due <= now:
                self.start_provide(key, now, region=upkeep.region)
        for key, upkeep in list(self.published.items()):
            if upkeep.due <= now:
                value = self.server.own[key]
                validity = self.validator(key, value)
                if validity is None or validity.expired:
                    del self.server.own[key], self.published[key]
                else:
                    self.start_put(key, value, now, region=upkeep.region)
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
        entries = sorted(self.table.entries(), key=lambda entry: entry.since)
        known = [(entry.contact, entry.groups) for entry in entries]
        for contact, groups in (*known, *self.memory.entries()):
            if len(chosen) < self.params.remembered:
                chosen.add(contact, groups)
        return chosen.contacts()
