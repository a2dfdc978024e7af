"""The Kademlia core on a network: streams, timers and the calls that others await."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.dht._core import KademliaCore
from owm.dht._core_guards import solve_puzzle
from owm.dht._core_keyspace import (
    MAX_PREFIX_BITS,
    READY_BITS,
    estimate_size,
    preimages_ready,
    prepare_preimages,
)
from owm.dht._core_types import (
    Contact,
    DhtParams,
    Done,
    Effect,
    GroupOf,
    Message,
    Misbehaved,
    Result,
    SendQuery,
    Validator,
    key_of,
)
from owm.dht._interface import Dht, DhtStatistics, Provider
from owm.dht._links import Link, LinkEvents
from owm.dht._peer_cache import PeerCache
from owm.dht._reach import Reach, provider_of, provider_or_none
from owm.dht._serving import QueryServer
from owm.dht._thinning import Thinning
from owm.dht._validators import RecordValidator, by_namespace
from owm.identity import PeerId
from owm.net import Connection, Network, PeerConnected, Penalty, group_of, is_local
from owm.records import SignedRecord

__all__ = ["KademliaDht", "dht_protocol", "provider_key"]

_log = structlog.get_logger(__name__)

_FIRST_SAVE: Final = 10.0
_SAVE_EVERY: Final = 300.0
_LARGE: Final = 8000.0  # peers; regions of larger networks have longer prefixes than are at hand
_PLACES: Final = 3  # random keys that a survey looks for
_RELAYED: Final = "relay"  # the group of connections through a relay


def dht_protocol(network_id: str) -> str:
    """The protocol id that the peers of a network speak."""
    return f"/owm/{network_id}/kad/1"


def provider_key(key: bytes) -> bytes:
    """The key as kad-dht carries it for providers: a SHA-256 multihash. One that is such a hash already stays."""
    if len(key) == 34 and key.startswith(b"\x12\x20"):
        return key
    return b"\x12\x20" + hashlib.sha256(key).digest()


class KademliaDht(Dht):
    """The DHT of one peer.

    Args:
        network: must be running before :meth:`running` is entered.
        network_id: of the network that we are on.
        clock: wall time, to judge the age of records by; intervals are measured in trio's time.
        random: the source of all chance.
        cache_path: where peers are remembered over a restart; None: they are not.
        protocol: another protocol id, for foreign networks.
        validators: further namespaces, each with its validator.
        devnet: exempt local addresses from diversity, and dial them when others name them.
        in_region: which keys are stored and looked for in their whole region, against Sybils that crowd a key.
        idle: seconds without a query after which a stream, and a connection made only for it, is closed.
        keep: unused connections that are kept up regardless.
        crowd: unused connections above which some are closed even where others opened them.
        wanted: whether somebody needs the connection with a peer though no stream shows it, as gossip's mesh does.
        few_links: peers with a stream, above which the one that was unused longest makes room for the next.
        most_links: peers that are asked at once.
    """

    def __init__(
        self,
        network: Network,
        *,
        network_id: str,
        clock: Clock,
        random: Random,
        params: DhtParams = DhtParams(),  # noqa: B008 - frozen
        cache_path: Path | None = None,
        protocol: str | None = None,
        validators: Mapping[str, Validator] | None = None,
        devnet: bool = False,
        in_region: Callable[[bytes], bool] | None = None,
        idle: float = 10.0,
        keep: int = 6,
        crowd: int = 10,
        wanted: Callable[[PeerId], bool] = lambda peer: False,
        few_links: int = 64,
        most_links: int = 256,
    ) -> None:
        self._network = network
        self._network_id = network_id
        self._random = random
        self._params = params
        self._protocol = protocol or dht_protocol(network_id)
        self._in_region = in_region or (lambda key: False)
        self._idle = idle
        self._few_links = min(few_links, most_links)
        self._most_links = most_links
        self._thinning = Thinning(network, random, idle, keep, crowd, self._meet, wanted)
        self._records = RecordValidator(network_id, clock)
        self._reach = Reach(network, local=devnet)
        groups: GroupOf = (lambda a: None if is_local(a) else group_of(a)) if devnet else group_of
        self.core = KademliaCore(
            Contact(bytes(network.peer_id)),
            params,
            random,
            by_namespace({"owm": self._records, **(validators or {})}),
            group_of=groups,
            connected=self._reach.connected,
            network=network_id,
        )
        self.core.prefix_bits = READY_BITS
        self._cache = PeerCache(self.core, cache_path)
        self._server = QueryServer(self.core, network, self._flush, self._spawn)
        self._serves = False
        self._links: dict[bytes, Link] = {}  # the one used last comes last
        self._waiting: dict[int, tuple[trio.Event, list[Result]]] = {}
        self._link_events = LinkEvents(self._answered, self._failed)
        self._nursery: trio.Nursery | None = None
        self._flushing = False
        self._wake = trio.Event()
        self._asleep_until = float("inf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve and maintain the table until the block ends; streams are reset then."""
        if not preimages_ready():
            await trio.to_thread.run_sync(prepare_preimages)
        if self._params.puzzle_bits:
            solve = partial(solve_puzzle, self._network_id, self.core.contact.id, self._params.puzzle_bits)
            self.core.proof = await trio.to_thread.run_sync(solve)
        await self._cache.load()
        self._note_addresses()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._serve_if_reachable()
                nursery.start_soon(self._run_timers)
                nursery.start_soon(self._watch_connections)
                nursery.start_soon(self._keep_cache)
                nursery.start_soon(self._thinning.run)
                try:
                    yield self
                finally:
                    self._nursery = None
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._cache.save()

    # The calls

    async def bootstrap(self) -> int:
        self._note_addresses()
        # Whom we chose to dial comes before who chose to dial us.
        connections = sorted(self._network.connections(), key=lambda c: c.inbound)
        seeds = [Contact(bytes(c.peer), c.addresses or (() if c.inbound else (c.address,))) for c in connections]
        await self._finished(self.core.start_bootstrap(seeds, trio.current_time()))
        return len(self.core.table)

    async def find_peer(self, peer: PeerId) -> Provider | None:
        connected = self._reach.connected(bytes(peer))
        if connected is not None:
            await trio.lowlevel.checkpoint()
            return provider_of(connected)
        found = (await self._finished(self.core.start_find_peer(bytes(peer), trio.current_time()))).peer
        return provider_of(found) if found is not None else None

    def known_peers(self, limit: int = 20) -> list[Provider]:
        return [provider_of(contact) for contact in self.core.table.sample(self._random, limit)]

    async def provide(self, key: bytes) -> int:
        start = self.core.start_provide
        operation = start(provider_key(key), trio.current_time(), region=self._in_region(key))
        return (await self._finished(operation)).stored

    async def unprovide(self, key: bytes) -> None:
        self.core.unprovide(provider_key(key))

    async def find_providers(self, key: bytes, limit: int = 20) -> list[Provider]:
        start = self.core.start_find_providers
        operation = start(provider_key(key), limit, trio.current_time(), region=self._in_region(key))
        found = (await self._finished(operation)).providers or []
        return [provider for contact in found if (provider := provider_or_none(contact)) is not None]

    async def put(self, record: SignedRecord) -> int:
        key = record.dht_key
        return await self.put_value(key, record.envelope, own=record.issuer == self._network.peer_id)

    async def put_value(self, key: bytes, value: bytes, *, own: bool = False) -> int:
        """Store any value that a validator accepts; for foreign namespaces. Returns the peers that took it."""
        start = self.core.start_put
        operation = start(key, value, trio.current_time(), own=own, region=self._in_region(key))
        return (await self._finished(operation)).stored

    async def get(self, key: bytes) -> SignedRecord | None:
        value = await self.get_value(key)
        return self._records.open(key, value) if value is not None else None

    async def get_value(self, key: bytes) -> bytes | None:
        """The newest valid value under a key of any namespace that has a validator."""
        operation = self.core.start_get(key, trio.current_time(), region=self._in_region(key))
        return (await self._finished(operation)).value

    async def survey(self) -> float | None:
        sizes: list[float] = []
        for _ in range(_PLACES):
            key = b"\x12\x20" + self._random.randbytes(32)
            nearest = (await self._finished(self.core.start_find_peer(key, trio.current_time()))).closest
            if nearest:
                sizes.append(estimate_size(key_of(key), nearest, self._params.k))
        return median(sizes) if sizes else None

    def statistics(self) -> DhtStatistics:
        core = self.core
        return DhtStatistics(
            mode="server" if core.serving else "client",
            table=len(core.table),
            records=len(core.server.records),
            providers=len(core.server.providers),
            lookups=core.lookups,
            queries_sent=core.sent,
            queries_failed=core.failed,
            queries_served=core.served,
            network_size=core.size_nearby(),
            extra={"links": len(self._links), "merges": core.merges, "splits": core.splits},
        )

    # Between the core and the network

    async def _finished(self, operation: int) -> Result:
        """Wait for an operation. A cancellation stops the waiting; the operation ends by itself."""
        event = trio.Event()
        box: list[Result] = []
        self._waiting[operation] = (event, box)
        try:
            self._flush()
            await event.wait()
        finally:
            self._waiting.pop(operation, None)
        return box[0]

    def _flush(self) -> None:
        """Carry out what the core wants."""
        if self._flushing:
            return  # a query that is done at once, or refused: what follows from it is next
        self._flushing = True
        try:
            while effects := self.core.drain():
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._flushing = False
        if self.core.next_deadline() < self._asleep_until:
            self._wake.set()

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, SendQuery):
            self._send(effect)
        elif isinstance(effect, Done):
            waiting = self._waiting.get(effect.operation)
            if waiting is not None:
                waiting[1].append(effect.result)
                waiting[0].set()
        elif isinstance(effect, Misbehaved):
            self._penalise(effect)

    def _penalise(self, effect: Misbehaved) -> None:
        self._network.penalise(PeerId(effect.peer), Penalty.LOW_TOLERANCE, f"kad-dht: {effect.reason}")

    def _send(self, query: SendQuery) -> None:
        contact = query.contact
        link = self._links.get(contact.id)
        dialable = self._reach.dialable(contact)
        if link is not None and link.open:
            if dialable is not None:
                link.dial_also(dialable)
            self._links[contact.id] = self._links.pop(contact.id)
            link.send(query)
            return
        if dialable is None or self._nursery is None or not self._has_room():
            self.core.query_failed(query.query_id, trio.current_time(), ours=dialable is not None)
            return
        link = Link(self._network, self._protocol, dialable, self._link_events, self._idle, self._spawn)
        self._links[contact.id] = link
        link.send(query)
        self._nursery.start_soon(self._run_link, link)

    def _has_room(self) -> bool:
        """Whether one more link may be opened; where there are many, the one unused longest is closed."""
        if len(self._links) < self._few_links:
            return True
        unused = next((peer for peer, link in self._links.items() if link.idle), None)
        if unused is None:
            return len(self._links) < self._most_links
        self._links.pop(unused).end()
        return True

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(run)

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._links.get(link.contact.id) is link:
                del self._links[link.contact.id]
        if link.dialled:
            await self._thinning.let_go(link.peer)

    def _meet(self, connections: Sequence[Connection]) -> None:
        """Foreign peers do not greet; what they say on connecting tells who serves the DHT and where."""
        for connection in connections:
            if self._protocol in connection.protocols and connection.addresses:
                contact = Contact(bytes(connection.peer), connection.addresses)
                self.core.meet(contact, trio.current_time(), connection.address)
        self._flush()

    def _answered(self, query_id: int, message: Message | None, observed: str | None) -> None:
        self.core.receive_response(query_id, message, trio.current_time(), observed)
        self._flush()

    def _failed(self, query_id: int, observed: str | None, ours: bool) -> None:
        self.core.query_failed(query_id, trio.current_time(), observed, ours=ours)
        self._flush()

    def _serve_if_reachable(self) -> None:
        """Foreign peers take everybody for a server that speaks the protocol, so a client does not speak it."""
        if self.core.serving and not self._serves:
            self._serves = True
            self._network.handle(self._protocol, self._server.serve, control=True)

    # Background

    async def _run_timers(self) -> None:
        while True:
            self._asleep_until = self.core.next_deadline()
            self._wake = trio.Event()
            with trio.move_on_at(self._asleep_until):
                await self._wake.wait()
            self.core.tick(trio.current_time())
            self._flush()

    async def _watch_connections(self) -> None:
        async with self._network.events() as events:
            async for event in events:
                if isinstance(event, PeerConnected) and event.inbound:
                    connection = self._network.connection(event.peer)
                    group = group_of(connection.address) if connection is not None else _RELAYED
                    if group != _RELAYED:  # through a relay everybody is reached
                        self.core.dialled_back(group)
                        self._serve_if_reachable()

    def _note_addresses(self) -> None:
        addresses = tuple(self._network.addresses)
        if addresses != self.core.contact.addresses:
            self.core.move(Contact(bytes(self._network.peer_id), addresses))

    async def _keep_cache(self) -> None:
        wait = _FIRST_SAVE  # soon at first, so that a crash after joining does not cost the way back
        while True:
            await trio.sleep(wait)
            wait = min(2 * wait, _SAVE_EVERY)
            self._note_addresses()
            await self._cache.save()
            if self.core.prefix_bits < MAX_PREFIX_BITS and (self.core.size.size or 0.0) > _LARGE:
                # Lookups of a region need keys here that take a second to find.
                await trio.to_thread.run_sync(prepare_preimages, MAX_PREFIX_BITS)
                self.core.prefix_bits = MAX_PREFIX_BITS
