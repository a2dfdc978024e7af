"""Peers that abuse a connection over real sockets for a while, as an honest peer asks on and on beside them."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from owm.net import NetworkLimits, Stream, pump_frames
from owm.net._core_multistream import encode
from owm.net._interface import Penalty
from owm.net.errors import ProtocolViolation
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, ask, connect, echo, identity
from tests.net.strangers import DATA, SYN, WINDOW, Stranger, frame

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SECONDS = 3.0
MULTISTREAM = encode("/multistream/1.0.0")
SLOTH = "/sloth/1"
FRAMES = "/frames/1"
QUICK = NetworkLimits(exempt_local=True, handshake_timeout=0.4, max_streams_per_peer=32)


class Victim:
    """A network under attack, and an honest peer that asks it all the while."""

    def __init__(self, network: Libp2pNetwork, honest: Libp2pNetwork) -> None:
        self.network = network
        self._honest = honest
        self.slowest = 0.0
        self.answers = 0

    async def keep_asking(self) -> None:
        while True:
            began = trio.current_time()
            assert await ask(self._honest, self.network, b"well?") == b"well?"
            self.slowest = max(self.slowest, trio.current_time() - began)
            self.answers += 1
            await trio.sleep(0.02)


@asynccontextmanager
async def attacked(attack: Callable[[Libp2pNetwork, int], Awaitable[None]]) -> AsyncIterator[Victim]:
    """Runs an attack by ever new identities for three seconds; what is left to check is who was blamed."""

    async def never_reads(stream: Stream) -> None:
        await trio.sleep_forever()

    async def frames(stream: Stream) -> None:
        try:
            await pump_frames(stream, 1000, lambda frame: None)
        except ProtocolViolation:
            network.penalise(stream.remote, Penalty.LOW_TOLERANCE, "a slow frame")

    async with (
        Libp2pNetwork(identity(1), limits=QUICK).running() as network,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as honest,
    ):
        network.handle(ECHO, echo)
        network.handle(SLOTH, never_reads)
        network.handle(FRAMES, frames)
        await connect(honest, network)
        found = Victim(network, honest)
        await ask(honest, network, b"first")
        tracemalloc.start()
        try:
            before, peak = tracemalloc.get_traced_memory()[0], 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(found.keep_asking)
                with trio.move_on_after(SECONDS):
                    for number in range(666, 10_000):
                        with suppress(trio.BrokenResourceError, OSError):
                            await attack(network, number)
                        await trio.sleep(0.01)
                peak = tracemalloc.get_traced_memory()[1] - before
                nursery.cancel_scope.cancel()
        finally:
            tracemalloc.stop()
        assert peak < 12 * MIB
        assert found.answers > 20
        assert found.slowest < 1.0
        assert found.network.statistics().penalised >= 1
        assert found.network.penalties.score(identity(2).peer_id, 0) == 0
        yield found


@pytest.mark.attack("T2")
async def test_who_ignores_the_window_costs_little_and_is_blamed() -> None:
    async def attack(network: Libp2pNetwork, number: int) -> None:
        async with Stranger.connected(identity(number), network) as mallory:
            hello = MULTISTREAM + encode(SLOTH)
            await mallory.send(frame(DATA, SYN, 1, len(hello), hello))
            while True:
                await mallory.send(frame(DATA, 0, 1, 32_000, bytes(32_000)))

    async with attacked(attack) as victim:
        assert victim.network.statistics().penalties["transport protocol violation"] > 1


@pytest.mark.attack("T2")
async def test_who_opens_streams_without_end_costs_little_and_is_blamed() -> None:
    async def attack(network: Libp2pNetwork, number: int) -> None:
        async with Stranger.connected(identity(number), network) as mallory:
            for stream in range(1, 1 << 20, 2):
                await mallory.send(frame(WINDOW, SYN, stream, 0))

    async with attacked(attack) as victim:
        assert victim.network.statistics().penalties["too many streams"] > 10
        assert victim.network.statistics().streams <= 2 * QUICK.max_streams_per_peer


@pytest.mark.attack("T4")
async def test_who_negotiates_byte_by_byte_costs_little_and_is_blamed() -> None:
    async def attack(network: Libp2pNetwork, number: int) -> None:
        async with Stranger.connected(identity(number), network) as mallory:
            words = MULTISTREAM + encode(ECHO)
            await mallory.send(b"".join(frame(DATA, SYN, stream, 1, words[:1]) for stream in range(1, 33, 2)))
            for byte in words[1:-1]:
                await trio.sleep(0.05)
                await mallory.send(b"".join(frame(DATA, 0, stream, 1, bytes([byte])) for stream in range(1, 33, 2)))

    async with attacked(attack) as victim:
        assert victim.network.statistics().penalties["negotiation never finished"] > 1
        score = victim.network.penalties.score(identity(666).peer_id, 0)
        assert score < -20, "and it lost its connection"


@pytest.mark.attack("T4")
async def test_who_sends_a_frame_byte_by_byte_costs_little_and_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owm.net._frames.seconds_for", lambda length: 0.4)

    async def attack(network: Libp2pNetwork, number: int) -> None:
        async with Stranger.connected(identity(number), network) as mallory:
            hello = MULTISTREAM + encode(FRAMES)
            await mallory.send(frame(DATA, SYN, 1, len(hello), hello))
            for _ in range(40):
                await mallory.send(frame(DATA, 0, 1, 1, b"\x7f"))
                await trio.sleep(0.04)

    async with attacked(attack) as victim:
        assert victim.network.statistics().penalties["a slow frame"] >= 1
