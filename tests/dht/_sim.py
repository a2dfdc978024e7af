"""Many cores on one event heap, with liars and the dead among them; no trio."""

from __future__ import annotations

import heapq
from random import Random

from owm.dht._core import KademliaCore
from owm.dht._core_server import QueryRefused
from owm.dht._core_types import Contact, DhtParams, Done, Message, Misbehaved, Result, SendQuery, Validity

PARAMS = DhtParams(dial_back_groups=0)


def numbered(key: bytes, value: bytes) -> Validity | None:
    """Values are ``ok:<sequence>``; everything else is forged."""
    if not value.startswith(b"ok:"):
        return None
    return Validity(int(value[3:]))


def contact(number: int, address: str | None = None) -> Contact:
    return Contact(b"peer-%05d" % number, (address or f"/ip4/10.{number & 255}.{number >> 8}.1/tcp/1",))


class Net:
    """``latency`` seconds one way; peers in ``dead`` never answer; ``liars`` answer by a function of their own.

    Values in ``expired`` are genuine and too old. Where a peer is dialled that is elsewhere, the dial is refused.
    """

    def __init__(self, seed: int = 1, latency: float = 0.05) -> None:
        self.random = Random(seed)
        self.latency = latency
        self.now = 0.0
        self.cores: dict[bytes, KademliaCore] = {}
        self.dead: set[bytes] = set()
        self.liars: dict[bytes, object] = {}
        self.results: dict[tuple[bytes, int], Result] = {}
        self.expired: set[bytes] = set()
        self.blamed: list[bytes] = []
        self.messages = 0
        self.blocked = lambda a, b: False
        self._heap: list = []
        self._order = 0

    def add(self, who: Contact, params: DhtParams = PARAMS, **options) -> KademliaCore:
        core = KademliaCore(who, params, Random(who.key & 0xFFFFFFFF), self._validate, **options)
        self.cores[who.id] = core
        return core

    def _validate(self, key: bytes, value: bytes) -> Validity | None:
        validity = numbered(key, value)
        return Validity(validity.sequence, 0.0) if validity is not None and value in self.expired else validity

    def grow(self, count: int, first: int = 0, **options) -> list[KademliaCore]:
        """Peers with converged tables: each knows the right ones, as after a long time."""
        new = [self.add(contact(n), **options) for n in range(first, first + count)]
        everybody = [core.contact for core in self.cores.values()]
        for core in new:
            for other in self.random.sample(everybody, len(everybody)):
                if other is not core.contact:
                    core.table.heard(other, self.now)
        return new

    def at(self, when: float, call, *args) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, call, args))

    def flush(self, core: KademliaCore) -> None:
        for effect in core.drain():
            if isinstance(effect, SendQuery):
                self.messages += 1
                if not self.blocked(core.contact.id, effect.contact.id):
                    self.at(self.now + self.latency, self._arrive, core, effect)
            elif isinstance(effect, Done):
                self.results[core.contact.id, effect.operation] = effect.result
            elif isinstance(effect, Misbehaved):
                self.blamed.append(effect.peer)
        self.at(core.next_deadline(), self._tick, core)

    def _tick(self, core: KademliaCore) -> None:
        if core.next_deadline() <= self.now:
            core.tick(self.now)
            self.flush(core)

    def _arrive(self, asker: KademliaCore, query: SendQuery) -> None:
        target = query.contact.id
        if target in self.dead:
            return
        if target in self.liars:
            answer = self.liars[target](asker.contact, query.message)
        elif target not in self.cores:
            return
        elif query.contact.addresses != self.cores[target].contact.addresses:
            self.at(self.now + self.latency, self._failed, asker, query.query_id)
            return
        else:
            core = self.cores[target]
            try:
                answer = core.receive_query(asker.contact.id, query.message, self.now)
            except QueryRefused:
                self.at(self.now + self.latency, self._failed, asker, query.query_id)
                return
            self.flush(core)
        self.at(self.now + self.latency, self._answered, asker, query.query_id, answer)

    def _answered(self, core: KademliaCore, query_id: int, answer: Message | None) -> None:
        core.receive_response(query_id, answer, self.now)
        self.flush(core)

    def _failed(self, core: KademliaCore, query_id: int) -> None:
        core.query_failed(query_id, self.now)
        self.flush(core)

    def run(self, core: KademliaCore, operation: int) -> Result:
        """Until the operation has ended."""
        self.flush(core)
        while (core.contact.id, operation) not in self.results:
            self._step()
        return self.results[core.contact.id, operation]

    def run_until(self, when: float) -> None:
        for core in self.cores.values():
            self.flush(core)
        while self._heap and self._heap[0][0] <= when:
            self._step()
        self.now = when

    def _step(self) -> None:
        when, _, call, args = heapq.heappop(self._heap)
        self.now = max(self.now, when)
        call(*args)
