"""Gateways to test against: one in front of real peers on a memory network, one in front of a scripted network.

Both are served over real sockets. In the first only the engines are stand-ins; the second answers whatever a test says,
failures that the real network gives too rarely included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import trio
from prometheus_client import CollectorRegistry

from owm.api import (
    Answered,
    AnswerEvent,
    KeyStore,
    NetworkStatistics,
    NodeInfo,
    NoWorker,
    Started,
    TokenText,
    create_app,
    serve,
)
from owm.clock import ManualClock
from owm.config import ApiSettings, NodeSettings, Settings, load_constitution
from owm.directory.joining import Lead
from owm.hardware import Hardware
from owm.identity import Identity
from owm.model import Done, Embeddings, GenerateRequest, Token
from owm.model.testing import StandInEngine
from owm.net import Link, MemoryHub
from owm.peer import Parts, Peer, limits_of
from owm.records import ServedModel
from owm.store import Store

MODEL = ServedModel("scripted", "ab" * 32, "chat", 2048)


class TrioClock:
    """Both clocks follow trio's."""

    def time(self) -> float:
        return 1_800_000_000.0 + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


class NamedEngine(StandInEngine):
    """Says in every word which worker it belongs to, so that two answers glued together would show."""

    def __init__(self, name: str, **settings: float) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.name = name

    async def _items(self, request: GenerateRequest, prompt: int, finished: list[bool]) -> AsyncIterator[Token | Done]:
        async for item in super()._items(request, prompt, finished):
            yield Token(f"{item.text}{self.name}", item.id, item.logprob) if isinstance(item, Token) else item


class World:
    """A gateway in front of workers, and where it listens."""

    def __init__(self, hub: MemoryHub) -> None:
        self.hub = hub
        self.url = ""
        self.key = ""
        self.engines: list[StandInEngine] = []
        self.workers: list[Peer] = []
        self.scopes: list[trio.CancelScope] = []
        self.gateway: Peer

    @property
    def engine(self) -> StandInEngine:
        return self.engines[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **headers: str) -> httpx.AsyncClient:
        return client(self.url, self.key, **headers)

    def kill(self, number: int) -> None:
        """End a worker as a crash of its machine would: nothing is said, its connections break."""
        self.scopes[number].cancel()

    async def busy(self) -> int:
        """The number of the worker that has begun to answer."""
        with trio.fail_after(5):
            while True:
                for number, engine in enumerate(self.engines):
                    if engine.statistics().busy:
                        return number
                await trio.sleep(0.005)

    async def idle(self, within: float = 1.5) -> None:
        """Wait until no task is left anywhere."""
        with trio.fail_after(within):
            while self.gateway.backend.statistics().tasks_running or any(  # noqa: ASYNC110
                engine.statistics().busy for engine in self.engines
            ):
                await trio.sleep(0.02)


def client(url: str, key: str, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}", **headers}, timeout=20)


def api_settings(**changes: object) -> ApiSettings:
    return ApiSettings(**{"port": 0, "write_timeout": 0.5, "max_prompt_tokens": 200, **changes})  # type: ignore[arg-type]


def _peer(role: str, number: int, hub: MemoryHub, engine: StandInEngine | None, gateway: str) -> Peer:
    constitution = load_constitution("devnet")
    settings = Settings(node=NodeSettings(roles=(role,)))
    identity = Identity(Random(f"{role}{number or ''}").randbytes(32))

    async def source() -> list[Lead]:
        return [Lead(None, gateway)]

    return Peer(
        Parts(
            identity=identity,
            settings=settings,
            constitution=constitution,
            network=hub.network(identity, limits=limits_of(settings, constitution)),
            store=Store(None),
            clock=TrioClock(),
            random=Random(2 + number),
            secrets=Random(f"{role}{number}secret"),
            hardware=Hardware((), 16_000),
            engine=engine,
            sources=[("test", source)] if gateway else [],
        )
    )


@asynccontextmanager
async def gateway_before(
    folder: Path, engines: Sequence[StandInEngine], settings: ApiSettings | None = None
) -> AsyncIterator[World]:
    """A gateway and one worker per engine, wired as `owm peer` wires them."""
    hub = MemoryHub(Random(1), Link(latency=0.001))
    found = World(hub)
    found.engines = list(engines)
    api = settings or api_settings()

    async def work(peer: Peer, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with peer.running():
                task_status.started(scope)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        found.gateway = await stack.enter_async_context(_peer("gateway", 0, hub, None, "").running())
        address = found.gateway.parts.network.addresses[0]
        for number, engine in enumerate(engines):
            peer = _peer("worker", number, hub, engine, address)
            found.workers.append(peer)
            found.scopes.append(await nursery.start(work, peer))
        with trio.fail_after(20):
            while len(found.gateway.directory.peers()) < len(engines):  # noqa: ASYNC110
                await trio.sleep(0.05)
        keys = KeyStore(folder / "keys.sqlite")
        stack.callback(keys.close)
        found.key = keys.add("test", 0).secret
        app = create_app(found.gateway.backend, api, keys, clock=TrioClock())
        found.url = await stack.enter_async_context(serve(app, api, grace=0.5))
        yield found
        await stack.aclose()
        nursery.cancel_scope.cancel()


@dataclass
class ScriptedNetwork:
    """A backend that answers "one two three" and does what a test tells it.

    ``fault`` raises, or waits, before the first token; ``late_fault`` after the second.
    """

    fault: Callable[[], object] | None = None
    late_fault: Callable[[], object] | None = None
    served: tuple[ServedModel, ...] = (MODEL,)
    asked: list[GenerateRequest] = field(default_factory=list)
    embedded: list[Sequence[str]] = field(default_factory=list)
    pause: float = 0.0
    logprob: float | None = None

    @asynccontextmanager
    async def answer(self, request: GenerateRequest, *, timeout: float) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        self.asked.append(request)
        yield self._events()

    async def _events(self) -> AsyncIterator[AnswerEvent]:
        await trio.sleep(self.pause)
        if self.fault is not None:
            self.fault()
        yield Started("worker-peer-id", 1, MODEL.sha256)
        yield TokenText("one ", self.logprob)
        yield TokenText("two ", self.logprob)
        if self.late_fault is not None:
            self.late_fault()
        yield TokenText("three", self.logprob)
        yield Answered(
            worker="worker-peer-id",
            attempts=1,
            receipt_id="ff" * 32,
            model=MODEL.id,
            model_sha256=MODEL.sha256,
            finish="stop",
            prompt_tokens=3,
            completion_tokens=3,
        )

    async def embed(self, texts: Sequence[str], model: str) -> Embeddings:
        self.embedded.append(texts)
        if self.fault is not None:
            self.fault()
        await trio.lowlevel.checkpoint()
        raise NoWorker("nobody embeds here", retry_after=5)

    def models(self) -> tuple[ServedModel, ...]:
        return self.served

    def nodes(self) -> tuple[NodeInfo, ...]:
        return (
            NodeInfo(
                peer="worker-peer-id", tier="t1", models=(MODEL.id,), running=0, slots=4, latency_ms=None, age_s=1.0
            ),
        )

    def statistics(self) -> NetworkStatistics:
        return NetworkStatistics(
            network="test",
            peers_known=1,
            connections=1,
            workers=1,
            tasks_running=0,
            tasks_completed=0,
            tasks_failed=0,
            tasks_reassigned=0,
        )


@dataclass
class Served:
    """A gateway in front of a scripted network; its clock moves only when a test moves it."""

    url: str
    keys: KeyStore
    network: ScriptedNetwork
    clock: ManualClock
    secret: str
    registry: CollectorRegistry

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **headers: str) -> httpx.AsyncClient:
        return client(self.url, self.secret, **headers)

    def stranger(self, address: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
        """A client without a key that comes from this loopback address."""
        transport = httpx.AsyncHTTPTransport(local_address=address)
        return httpx.AsyncClient(base_url=self.url, headers=headers, transport=transport, timeout=20)


@asynccontextmanager
async def served(folder: Path, network: ScriptedNetwork | None = None, **settings: object) -> AsyncIterator[Served]:
    api = api_settings(**settings)
    clock = ManualClock()
    network = network or ScriptedNetwork()
    keys = KeyStore(folder / "keys.sqlite", clock)
    try:
        registry = CollectorRegistry()
        app = create_app(network, api, keys, clock=clock, registry=registry)
        async with serve(app, api, grace=0.5) as url:
            yield Served(url, keys, network, clock, keys.add("test", 0).secret, registry)
    finally:
        keys.close()


async def raw(port: int, data: bytes) -> bytes:
    """Send these bytes and read until the gateway closes, or has been silent for a second."""
    received = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        with trio.move_on_after(1.0):
            async for chunk in stream:
                received += chunk
    return received
