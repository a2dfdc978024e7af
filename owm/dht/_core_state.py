"""What the core knows: the table, the stores, the queries in flight; and who may enter the table."""

from __future__ import annotations

from collections import deque
from random import Random

from owm.dht._core_guards import PeerMemory, Reputation, check_proof
from owm.dht._core_keyspace import MAX_PREFIX_BITS, SizeEstimator, estimate_size
from owm.dht._core_lookup import Candidate, Lookup
from owm.dht._core_operation import FanOut, Operation
from owm.dht._core_server import Server
from owm.dht._core_table import RoutingTable
from owm.dht._core_types import (
    Connected,
    Contact,
    DhtParams,
    Effect,
    GroupOf,
    Message,
    MessageType,
    Misbehaved,
    SendQuery,
    Validator,
)

__all__ = ["MAINTENANCE", "CoreState", "Query", "Upkeep"]

MAINTENANCE = 60.0  #: seconds between rounds of upkeep
_NEVER = float("inf")


class Query:
    """A query in flight, and what it is for."""

    __slots__ = ("candidate", "contact", "fan_out", "lookup", "operation", "probe", "slow")

    def __init__(
        self,
        contact: Contact,
        operation: Operation | None,
        lookup: Lookup | None = None,
        candidate: Candidate | None = None,
        fan_out: FanOut | None = None,
        probe: bool = False,
    ) -> None:
        self.contact = contact
        self.operation = operation
        self.lookup = lookup
        self.candidate = candidate
        self.fan_out = fan_out
        self.probe = probe  # asks the sought peer itself
        self.slow = False


class Upkeep:
    """When something of ours is stored again, and whether in all of its region."""

    __slots__ = ("due", "region", "tries")

    def __init__(self, due: float, region: bool) -> None:
        self.due = due
        self.region = region
        self.tries = 0  # in a row that nobody took it


class CoreState:
    """What one peer knows; :class:`owm.dht._core.KademliaCore` adds what it does.

    Args:
        contact: ourselves, with the addresses that others may dial.
        params: see :class:`DhtParams`; all peers of a network use the same.
        random: the source of all chance.
        validator: judges the values that we store and that we are given.
        group_of: the subnet group of an address, None for exempt ones; without it diversity is off.
        connected: where a peer listens that is connected to us, so that clients can be found too.
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
        connected: Connected | None = None,
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
        self.server = Server(contact, self.table, params, random, validator, connected)
        self.memory = PeerMemory(params, group_of)
        self.reputation = Reputation(params)
        self.size = SizeEstimator(params.k)
        self.operations: dict[int, Operation] = {}
        self.provided: dict[bytes, Upkeep] = {}
        self.published: dict[bytes, Upkeep] = {}  # our own records
        self.dialled_by: set[str] = set()
        self.prefix_bits = MAX_PREFIX_BITS  # for which keys of a given prefix are at hand, see the keyspace module
        self.lookups = self.sent = self.failed = self.served = self.merges = self.splits = 0
        self._effects: list[Effect] = []
        self._queries: dict[int, Query] = {}
        self._slow: deque[tuple[float, int]] = deque()
        self._timeouts: deque[tuple[float, int]] = deque()
        self._ends: deque[tuple[float, int]] = deque()
        self._next = 0
        self._verifying: set[bytes] = set()
        self._answered_at = -_NEVER  # when anybody answered last
        self._maintain_at = random.uniform(0.5, 1.0) * MAINTENANCE
        self._sweep_at = params.sweep_interval
        self._merge_at = random.uniform(0.5, 1.5) * params.merge_interval

    def size_nearby(self) -> float | None:
        """About how many server-mode peers there are, None while we know nobody: from how near our neighbours are.

        Whoever joins looks for its own key and so meets its neighbours, which makes this current and costs nothing.
        """
        nearest = self.table.nearest(self.contact.key, self.params.k)
        return estimate_size(self.contact.key, nearest, self.params.k) if nearest else None

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

    def verify(self, contact: Contact, now: float) -> None:
        """Ask a peer something; if it answers it may enter the table."""
        if contact.id == self.contact.id:
            return
        self._verifying.add(contact.id)
        self._send(Query(contact, None), self._ask(MessageType.FIND_NODE, self.contact.id), now)

    def meet(self, contact: Contact, now: float, observed: str | None = None) -> None:
        """A connected peer is said to serve the DHT: check that it does, if the table would take it."""
        if contact.key not in self.table and self._welcome(contact, observed, now) and not self._verifying:
            self.verify(contact, now)

    def _welcome(self, contact: Contact, observed: str | None, now: float) -> bool:
        groups = self.table.groups_of(contact, observed)
        return self.table.has_room(contact, groups) and self.reputation.admits(groups, now)

    def _enter(self, contact: Contact, message: Message | None, observed: str | None, now: float) -> bool:
        """A peer has answered us; returns whether it is new to the table.

        What it says of itself is where others are told to find it, and never whom it counts with: that is where it was
        seen, or at least dialled.
        """
        dialled = contact
        sender = message.sender if message is not None else None
        if sender is not None and sender is not contact and sender.id == contact.id and sender.addresses:
            contact = sender  # what it says of itself counts more than what others said
        if not contact.addresses:
            return False
        if contact.key in self.table:
            same = observed is None and contact is dialled
            self.table.heard(contact, now, None if same else self.table.groups_of(dialled, observed))
            return False
        if self.params.puzzle_bits:
            proof = message.proof if message is not None else b""
            if not check_proof(self.network, contact.id, proof, self.params.puzzle_bits):
                return False
        groups = self.table.groups_of(dialled, observed)
        if (groups and not self.reputation.admits(groups, now)) or not self.table.heard(contact, now, groups):
            return False
        if groups:
            self.reputation.entered(groups, now)
        self.memory.forget(contact.id)
        return True

    def _blame(self, contact: Contact, observed: str | None, reason: str, now: float) -> None:
        self.table.remove(contact.key)
        self.reputation.blame(self.table.groups_of(contact, observed), 5.0, now)
        self._effects.append(Misbehaved(contact.id, reason))

    def _ask(self, kind: MessageType, key: bytes, value: bytes | None = None) -> Message:
        sender = self.contact if self.serving else None
        return Message(kind, key, value, sender=sender, proof=self.proof if sender else b"")

    def _send(self, query: Query, message: Message, now: float) -> None:
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
