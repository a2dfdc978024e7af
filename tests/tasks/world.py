"""A small network in memory with real requesters, workers, directories and stores; only the engine is a stand-in."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import trio

from owm.directory import Directory
from owm.identity import Identity
from owm.model import Done, Embeddings, Engine, EngineStatistics, GenerateRequest, Token
from owm.net import MemoryHub, MemoryNetwork
from owm.records import CapabilityManifest, ServedModel, SignedRecord, sign_record
from owm.store import Store
from owm.tasks import Scheduler, TaskRequester, TaskWorker, WorkerLimits

NETWORK_ID = "0123456789abcdef0123456789abcdef"
CHAT = ServedModel("counter", "aa" * 32, "chat", 2048)
EMBEDDING = ServedModel("hashes", "bb" * 32, "embedding", 256)


class TrioClock:
    """Both clocks follow trio's, so that they jump with it; ``skew`` puts the wall clock off."""

    def __init__(self, skew: float = 0.0) -> None:
        self._skew = skew

    def time(self) -> float:
        return 1_800_000_000.0 + self._skew + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


class CountingEngine(Engine):
    """Answers "w0 w1 w2 ..." at a fixed pace, and keeps count of what runs."""

    kind = "stand-in"

    def __init__(self, gap: float = 0.01) -> None:
        self.gap = gap
        self.active = 0
        self.most_active = 0
        self.prompts: list[str] = []
        self.left_at: list[float] = []
        self.error: Exception | None = None
        self.ready = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CountingEngine]:
        yield self

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (CHAT, EMBEDDING)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Token | Done]]:
        if self.error is not None:
            raise self.error
        self.prompts.append(request.messages[-1].content)
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            yield self._items(request)
        finally:
            self.active -= 1
            self.left_at.append(trio.current_time())

    async def _items(self, request: GenerateRequest) -> AsyncIterator[Token | Done]:
        for number in range(request.max_tokens):
            await trio.sleep(self.gap)
            yield Token(f"w{number} ", number, -0.25 - number)
        yield Done(
            finish="length",
            prompt_tokens=3,
            completion_tokens=request.max_tokens,
            model=CHAT.id,
            model_sha256=CHAT.sha256,
            template_sha256="cc" * 32,
        )

    async def embed(self, texts: Sequence[str], model: str = "") -> Embeddings:
        await trio.sleep(self.gap)
        vectors = tuple(tuple(b / 256 for b in hashlib.sha256(text.encode()).digest()[:8]) for text in texts)
        return Embeddings(vectors=vectors, prompt_tokens=len(texts), model=EMBEDDING.id, model_sha256=EMBEDDING.sha256)

    async def count_tokens(self, messages: Sequence[object]) -> int:
        return len(messages)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(ready=self.ready, slots=4, busy=self.active)


class WorkerPeer:
    """A worker with all that belongs to it; ``scope`` kills it."""

    def __init__(self, world: World, number: int, limits: WorkerLimits, engine: Engine) -> None:
        self.identity = Identity(hashlib.sha256(b"worker%d" % number).digest())
        self.network: MemoryNetwork = world.hub.network(self.identity)
        self.engine = engine
        self.store = Store(None)
        self.limits = limits
        self.worker = TaskWorker(self.network, engine, self.identity, self.store, NETWORK_ID, world.clock, limits)
        self.scope = trio.CancelScope()
        self.ready = trio.Event()

    async def run(self) -> None:
        with self.scope:
            async with self.store.running(), self.network.running(), self.worker.running():
                self.ready.set()
                await trio.sleep_forever()

    def manifest(self, sequence: int, **changes: object) -> SignedRecord:
        fields: dict[str, object] = {
            "sequence": sequence,
            "roles": ("worker",),
            "tier": "t0",
            "addresses": self.network.addresses,
            "nonce": b"n" * 16,
            "task_types": ("inference", "embed_data"),
            "models": (CHAT, EMBEDDING),
            "slots": self.limits.slots,
        }
        return sign_record(self.identity, CapabilityManifest(**{**fields, **changes}), NETWORK_ID)  # type: ignore[arg-type]


class World:
    """One requester and any number of workers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.random = Random(7)
        self.hub = MemoryHub(self.random)
        self.clock = TrioClock()
        self.nursery = nursery
        self.identity = Identity(hashlib.sha256(b"requester").digest())
        self.network = self.hub.network(self.identity)
        self.directory = Directory(self.identity, b"m" * 16, self.clock)
        self.store = Store(None)
        self.scheduler = Scheduler(self.directory, self.store, self.clock, self.random)
        self.requester = TaskRequester(
            self.network, self.directory, self.scheduler, self.identity, self.store, NETWORK_ID, self.clock, self.random
        )
        self.workers: list[WorkerPeer] = []

    async def add_worker(
        self, limits: WorkerLimits = WorkerLimits(), gap: float = 0.01, engine: Engine | None = None
    ) -> WorkerPeer:
        peer = WorkerPeer(self, len(self.workers), limits, engine or CountingEngine(gap))
        self.workers.append(peer)
        self.nursery.start_soon(peer.run)
        await peer.ready.wait()
        self.directory.note(peer.manifest(int(self.clock.time() * 1000)))
        return peer

    def by_id(self, peer_id: bytes) -> WorkerPeer:
        return next(peer for peer in self.workers if peer.identity.peer_id == peer_id)


@asynccontextmanager
async def world(workers: int = 0, gap: float = 0.01, limits: WorkerLimits = WorkerLimits()) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        made = World(nursery)
        for block in (made.store, made.network, made.requester):
            await stack.enter_async_context(block.running())
        for _ in range(workers):
            await made.add_worker(limits, gap)
        yield made
        nursery.cancel_scope.cancel()
