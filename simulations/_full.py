"""Full fidelity: whole peers, with every service and role, on a memory network in virtual time.

What a peer is made of comes from the same code that `owm peer` runs; only the engine is a stand-in. Nothing here uses a
thread, a process, a file or a socket, all chance comes from the seed, and trio's scheduler is seeded too, so a run
repeats: the trace hash is the SHA-256 over (time in microseconds, destination, protocol, digest of the bytes; of sealed
task payloads their length) of all data that arrived.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final

import structlog
import trio
import trio.testing

from owm.api import Answered
from owm.config import LimitsSettings, NetworkSettings, NodeSettings, Settings, load_constitution
from owm.dht._core_keyspace import prepare_preimages
from owm.directory.joining import Lead
from owm.errors import OwmError
from owm.hardware import Hardware
from owm.identity import Identity, PeerId
from owm.model import ChatMessage, GenerateRequest
from owm.model.testing import StandInEngine
from owm.net import Link, MemoryHub, NetworkLimits
from owm.peer import Parts, Peer
from owm.store import Store
from simulations._churn import Churn
from simulations._judge import judge
from simulations._measure import Measurements, Operation, Sample
from simulations._scenario import Scenario

__all__ = ["FullWorld"]

_EPOCH: Final = 1_800_000_000.0
_TRACE: Final = struct.Struct("<QIII")
_SAMPLE_EVERY: Final = 10.0
_ASK_SECONDS: Final = 30.0
_TOLD: Final = 3  # addresses that a newcomer is given, as an invite would
_DAY: Final = 86_400.0


class _VirtualClock:
    """Wall time and monotonic time both follow trio's clock."""

    def time(self) -> float:
        return _EPOCH + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


class _Member:
    """One peer's place in the run, over all its sessions."""

    def __init__(self, index: int, seed: int, role: str) -> None:
        self.index = index
        self.role = role
        self.identity = Identity(Random(f"{seed}:{index}:key").randbytes(32))  # noqa: S311 - a simulation
        self.peer: Peer | None = None  #: while it is online
        self.scope = trio.CancelScope()
        self.sessions = 0
        self.steady = True  #: never left
        self.bytes: Counter[str] = Counter()  #: sent and received, by protocol


class FullWorld:
    """One run of a scenario with one seed; same outside as :class:`~simulations._world.World`."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.measured = Measurements()
        self.events = 0
        self._seed = seed
        self._digest = hashlib.sha256()
        gateways = scenario.peers.gateways
        self._members = [
            _Member(i, seed, "gateway" if i < gateways else "worker") for i in range(scenario.nodes)
        ]  # fmt: skip
        self._by_id = {member.identity.peer_id: member for member in self._members}
        self._by_bytes = {bytes(peer): member for peer, member in self._by_id.items()}
        self._random = self._stream("world")
        self._churn = Churn(scenario.churn, self._stream("churn"))
        self._constitution = load_constitution("devnet")
        self._hub: MemoryHub
        self._nursery: trio.Nursery
        self._usable: dict[int, float] = {}  # late gateway: seconds from its start until it knew a worker for a task

    @property
    def messages(self) -> int:
        """Pieces of data that arrived; nothing else is counted as an event at this fidelity."""
        return self.events

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()

    def run(self, progress: Callable[[float], None] | None = None) -> None:
        """Run to the end of the scenario, in a trio of its own."""
        before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        try:
            self._run(progress)
        finally:
            structlog.configure(**before)

    def _run(self, progress: Callable[[float], None] | None) -> None:
        prepare_preimages()
        scheduler = trio._core._run
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # trio has no public way to seed its scheduler
        scheduler._r = self._stream("scheduler")
        trio.run(self._main, progress, clock=trio.testing.MockClock(autojump_threshold=0))

    def check(self, metrics: dict[str, Any]) -> dict[str, bool]:
        """Each invariant that the scenario asks for, and whether it holds; adds this fidelity's metrics."""
        metrics.update(self._traffic())
        late = [member.index for member in self._members if self._is_late(member)]
        if late:
            metrics["late_gateways_usable"] = len(self._usable)
            # One that never gets there counts: then there is no longest time.
            every = len(self._usable) == len(late)
            metrics["gateway_usable_max_seconds"] = max(self._usable.values()) if every else None
        return judge(self.scenario, metrics)

    # -- the run

    async def _main(self, progress: Callable[[float], None] | None) -> None:
        links = self.scenario.links
        link = Link(latency=links.latency_ms / 1000, jitter=links.latency_ms / 1000 * links.jitter, loss=links.loss)
        self._hub = MemoryHub(self._stream("hub"), link)
        self._hub.observer = self._arrived
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for member in self._members:
                nursery.start_soon(self._live, member, self._start_of(member))
            nursery.start_soon(self._ask_questions)
            nursery.start_soon(self._sample)
            steps = 200
            for step in range(steps):
                await trio.sleep(self.scenario.duration / steps)
                if progress is not None:
                    progress((step + 1) / steps)
            nursery.cancel_scope.cancel()

    def _is_late(self, member: _Member) -> bool:
        peers = self.scenario.peers
        return peers.gateways - peers.late_gateways <= member.index < peers.gateways

    def _start_of(self, member: _Member) -> float:
        if self._is_late(member):
            return self.scenario.duration / 2 + 2.0 * (self.scenario.peers.gateways - member.index)
        return member.index * self.scenario.population.join_interval

    async def _live(self, member: _Member, start: float) -> None:
        """Come online, and where the scenario has churn, leave without a word and come back.

        Whoever churns is online at its start or away, as the steady state has it.
        """
        churns = member.index > 0 and member.role == "worker" and self._churn.churns()
        online = not churns or self._churn.starts_online()
        left = self._churn.first(online) if churns else math.inf
        await trio.sleep(start)
        if not online:
            member.steady = False
            await trio.sleep(left)
            left = self._churn.session()
        while True:
            with trio.move_on_after(left) as member.scope:
                async with self._start(member).running() as peer:
                    member.peer = peer
                    if self._is_late(member):
                        self._nursery.start_soon(self._watch_usable, member, peer)
                    await trio.sleep_forever()
            member.peer, member.steady = None, False
            await trio.sleep(self._churn.absence())
            left = self._churn.session()

    def _start(self, member: _Member) -> Peer:
        """The peer for one more session: the same key, nothing else remembered."""
        member.sessions += 1
        name = f"{self._seed}:{member.index}:{member.sessions}"
        settings = Settings(
            node=NodeSettings(roles=(member.role,)),
            network=NetworkSettings(measure_bandwidth=False),
            limits=LimitsSettings(),
        )
        online = [other for other in self._members if other.peer is not None]
        told = [
            Lead(other.identity.peer_id, other.peer.parts.network.addresses[0])
            for other in self._random.sample(online, min(_TOLD, len(online)))
            if other.peer is not None
        ]

        async def source() -> list[Lead]:
            return told

        limits = self.scenario.peers
        network = self._hub.network(
            member.identity,
            limits=NetworkLimits(
                max_connections=limits.max_connections,
                max_inbound=limits.max_connections,
                high_water=limits.max_connections * 3 // 4,
                low_water=limits.max_connections * 5 // 8,
                reserved_protected=limits.max_connections // 8,
                exempt_local=True,
            ),
        )
        return Peer(
            Parts(
                identity=member.identity,
                settings=settings,
                constitution=self._constitution,
                network=network,
                store=Store(None, inline=True),
                clock=_VirtualClock(),
                random=Random(f"{name}:chance"),  # noqa: S311 - a simulation must repeat
                secrets=Random(f"{name}:secrets"),  # noqa: S311
                hardware=Hardware((), 16_000),
                engine=StandInEngine(pace=0.02) if member.role == "worker" else None,
                sources=[("invite", source)] if told else [],
            )
        )

    # -- what is done, and what is seen

    async def _watch_usable(self, member: _Member, peer: Peer) -> None:
        """Note how long a late gateway takes until it knows a worker that it could send a question to."""
        started = trio.current_time()
        while not peer.directory.eligible("inference"):  # noqa: ASYNC110 - sampled from outside
            await trio.sleep(0.1)
        self._usable[member.index] = trio.current_time() - started

    async def _ask_questions(self) -> None:
        workload = self.scenario.workload
        random = self._stream("questions")
        end = self.scenario.duration - workload.cool_down
        times = sorted(random.uniform(workload.warm_up, end) for _ in range(workload.queries))
        for number, at in enumerate(times):
            await trio.sleep_until(at)
            online = [m.peer for m in self._members if m.role == "gateway" and m.peer is not None]
            if online:
                self._nursery.start_soon(self._ask, random.choice(online), f"question {number}")

    async def _ask(self, gateway: Peer, text: str) -> None:
        started = trio.current_time()
        answered = False
        request = GenerateRequest(messages=(ChatMessage("user", text),), max_tokens=8)
        try:
            with trio.move_on_after(_ASK_SECONDS):
                async with gateway.backend.answer(request, timeout=_ASK_SECONDS) as events:
                    async for event in events:
                        answered = answered or isinstance(event, Answered)
        except OwmError:
            answered = False
        took = trio.current_time() - started if answered else math.nan
        self.measured.operations.append(Operation("query", started, took, answered, 0, 0))

    async def _sample(self) -> None:
        """What gateways know, against what is the case."""
        while True:
            await trio.sleep(_SAMPLE_EVERY)
            online = [member for member in self._members if member.peer is not None]
            workers = {member.identity.peer_id for member in online if member.role == "worker"}
            shares: list[float] = []
            for member in online:
                if member.role == "gateway" and member.peer is not None:
                    known = {found.id for found in member.peer.directory.peers()}
                    shares.append(len(known & workers) / max(1, len(workers)))
            entries = live = 0
            for member in online:
                if member.peer is not None:
                    known_ids = [contact.id for contact in member.peer.dht.core.table.contacts()]
                    entries += len(known_ids)
                    live += sum(self._by_bytes[i].peer is not None for i in known_ids if i in self._by_bytes)
            count = max(1, len(online))
            self.measured.samples.append(
                Sample(
                    time=trio.current_time(),
                    online=len(online),
                    table_mean=entries / count,
                    table_live_share=live / entries if entries else math.nan,
                    mesh_mean=sum(m.peer.gossip.statistics().mesh_links for m in online if m.peer) / count,
                    messages=self.events,
                )
            )
            self.measured.shares.append(sum(shares) / len(shares) if shares else 0.0)

    def _arrived(self, source: PeerId, target: PeerId, protocol: str, data: bytes) -> None:
        self.events += 1
        now = trio.current_time()
        receiver, sender = self._by_id[target], self._by_id[source]
        part = _part(protocol)
        # Sealed payloads count by their length: libsodium draws the header of each by itself.
        content = len(data) if part == "tasks" else zlib.crc32(data)
        self._digest.update(_TRACE.pack(int(now * 1e6), receiver.index, zlib.crc32(protocol.encode()), content))
        if now >= self.scenario.workload.warm_up:
            receiver.bytes[part] += len(data) + _OVERHEAD
            sender.bytes[part] += len(data) + _OVERHEAD

    def _traffic(self) -> dict[str, Any]:
        """Megabytes a day of the workers that were online all the time, without the tasks that they did."""
        steady = [member for member in self._members if member.role == "worker" and member.steady]
        seconds = self.scenario.duration - self.scenario.workload.warm_up
        if not steady or seconds <= 0:
            return {}
        scale = _DAY / seconds / 1e6
        idle = sorted(scale * sum(n for part, n in m.bytes.items() if part != "tasks") for m in steady)
        found: dict[str, Any] = {
            "idle_worker_mb_per_day": sum(idle) / len(idle),
            "idle_worker_median_mb_per_day": idle[len(idle) // 2],
            "idle_worker_max_mb_per_day": idle[-1],
        }
        for part in sorted({part for member in steady for part in member.bytes}):
            found[f"idle_worker_{part}_mb_per_day"] = scale * sum(m.bytes[part] for m in steady) / len(steady)
        if self.measured.shares:
            settled = self.measured.shares[len(self.measured.shares) // 3 :]
            found["directory_share"] = sum(settled) / len(settled)
        return found

    def _stream(self, name: str) -> Random:
        return Random(int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:8], "big"))  # noqa: S311


_OVERHEAD: Final = 12 + 18  # bytes around data: a Yamux header, a Noise packet's length and tag


def _part(protocol: str) -> str:
    """Which part of a peer's traffic a protocol is."""
    if "meshsub" in protocol:
        return "gossip"
    if "/kad/" in protocol:
        return "dht"
    if "task" in protocol:
        return "tasks"
    return "other"
