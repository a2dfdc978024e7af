"""The network in memory behaves like the real one, in virtual time and the same way each time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Link, MemoryHub, Nat, Network, NetworkLimits, PeerConnected, PeerDisconnected, Stream
from owm.net.errors import DialFailed, NetworkError, NotConnected, StreamReset
from tests.net.conformance import ECHO, LIMITS, NetworkConformance, ask, connect, echo, eventually, identity, read_all
from tests.net.conformance_streams import StreamConformance

A, B, C = (identity(number).peer_id for number in (1, 2, 3))


class TestMemoryNetwork(NetworkConformance, StreamConformance):
    @pytest.fixture(autouse=True)
    def hub(self, autojump_clock: MockClock) -> MemoryHub:
        self._hub = MemoryHub(Random(1), Link(latency=0.0005, jitter=0.0005))
        self._numbers = 0
        return self._hub

    @asynccontextmanager
    async def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AsyncIterator[list[Network]]:
        async with AsyncExitStack() as stack:
            numbers = range(self._numbers + 1, self._numbers + count + 1)
            self._numbers += count
            networks = [self._hub.network(identity(number), limits=limits) for number in numbers]
            yield [await stack.enter_async_context(network.running()) for network in networks]


@asynccontextmanager
async def pair(link: Link = Link(), seed: int = 1) -> AsyncIterator[tuple[MemoryHub, Network, Network]]:
    hub = MemoryHub(Random(seed), link)
    async with hub.network(A).running() as a, hub.network(B).running() as b:
        b.handle(ECHO, echo)
        yield hub, a, b


async def test_a_round_trip_takes_twice_the_latency(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.1)) as (_, a, b):
        await connect(a, b)
        stream = await a.open_stream(B, ECHO)
        began = trio.current_time()
        await stream.send(b"ping")
        assert await stream.receive() == b"ping"
        assert trio.current_time() - began == pytest.approx(0.2)
        assert a.connections()[0].round_trip == pytest.approx(0.2)


async def test_bandwidth_bounds_the_rate(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.01, bandwidth=1_000_000)) as (_, a, b):

        async def sink(stream: Stream) -> None:
            await stream.send(str(len(await read_all(stream))).encode())

        b.handle("/sink", sink)
        await connect(a, b)
        stream = await a.open_stream(B, "/sink")
        began = trio.current_time()
        await stream.send(bytes(3_000_000))
        await stream.close_write()
        assert await stream.receive() == b"3000000"
        assert 3.0 < trio.current_time() - began < 3.3


async def test_small_messages_pass_a_bulk_stream(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.001, bandwidth=1_000_000)) as (_, a, b):
        b.handle("/sink", read_all_of)
        await connect(a, b)
        bulk = await a.open_stream(B, "/sink", bulk=True)
        small = await a.open_stream(B, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk.send, bytes(2_000_000))
            await trio.sleep(0.1)
            began = trio.current_time()
            await small.send(b"ping")
            await small.receive()
            assert trio.current_time() - began < 0.04  # at most the frame that is on the wire
            nursery.cancel_scope.cancel()


async def read_all_of(stream: Stream) -> None:
    await read_all(stream)


async def test_loss_delays_but_never_drops_or_reorders(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.01, jitter=0.05, loss=0.1)) as (_, a, b):
        await connect(a, b)
        payload = Random(5).randbytes(1_000_000)
        stream = await a.open_stream(B, ECHO)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, payload)
            received = bytearray()
            while len(received) < len(payload):
                received += await stream.receive()
        assert bytes(received) == payload
        assert trio.current_time() - began > 1.0


async def test_a_link_that_resets_breaks_the_connection_at_both_ends(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.01)) as (hub, a, b):
        await connect(a, b)
        stream = await a.open_stream(B, ECHO)
        hub.link(A, B, Link(latency=0.01, reset=1.0))
        await stream.send(b"this breaks it")
        with pytest.raises(StreamReset):
            await stream.receive()
        assert not a.is_connected(B) and not b.is_connected(A)


async def _arrivals(seed: int) -> list[float]:
    async with pair(Link(latency=0.01, jitter=0.1, loss=0.2), seed) as (_, a, b):
        await connect(a, b)
        stream = await a.open_stream(B, ECHO)
        times = []
        for _ in range(30):
            await stream.send(b"x")
            await stream.receive()
            times.append(trio.current_time())
        return [round(later - times[0], 9) for later in times]


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [trio.run(_arrivals, seed, clock=MockClock(autojump_threshold=0)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


async def test_a_partition_shorter_than_the_keep_alive_only_delays(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.01)) as (hub, a, b):
        await connect(a, b)
        stream = await a.open_stream(B, ECHO)
        hub.partition({A}, {B}, one_way=True)
        await stream.send(b"held up")
        with trio.move_on_after(20) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        hub.heal()
        assert await stream.receive() == b"held up"


async def test_a_lasting_partition_ends_the_connection_at_both_ends(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.01)) as (hub, a, b):
        await connect(a, b)
        events = a.events()
        assert isinstance(await events.receive(), PeerConnected)
        hub.partition({A}, {B}, one_way=True)
        with trio.fail_after(35):
            assert await events.receive() == PeerDisconnected(B, "the keep-alive timed out")
        await eventually(lambda: not b.is_connected(A))
        with pytest.raises(DialFailed, match="no answer"):
            await b.connect(A, a.addresses)
        hub.heal()
        await trio.sleep(1)
        await connect(a, b)
        assert await ask(a, b, b"merged") == b"merged"


async def test_who_is_behind_a_nat_dials_but_is_not_dialled(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    public, cone, symmetric = hub.network(A), hub.network(B, nat=Nat.CONE), hub.network(C, nat=Nat.SYMMETRIC)
    async with public.running(), cone.running(), symmetric.running():
        for hidden in (cone, symmetric):
            with pytest.raises(DialFailed):
                await public.connect(hidden.peer_id, hidden.addresses)
            await connect(hidden, public)
            await hidden.disconnect(A)
            await eventually(lambda: not public.connections())
        # The cone NAT still maps the dial of a moment ago; the symmetric one maps each flow for itself.
        await trio.sleep(10)
        await connect(cone, public)
        await cone.disconnect(A)
        await eventually(lambda: not public.connections())
        await connect(public, cone)
        with pytest.raises(DialFailed):
            await public.connect(C, symmetric.addresses)


async def test_a_left_peers_address_is_refused_and_can_be_taken_again(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1))
    async with hub.network(A).running() as a:
        network = hub.network(B, address="/ip4/10.9.9.9/tcp/1")
        with pytest.raises(DialFailed, match="refused"):
            await a.connect(B, network.addresses)
        await trio.sleep(1)
        async with network.running() as b:
            await connect(a, b)
        await eventually(lambda: not a.connections())
        await trio.sleep(1)
        async with hub.network(B, address="/ip4/10.9.9.9/tcp/1").running() as again:
            await connect(a, again)


async def test_streams_opened_without_end_are_paced_and_refused(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    greedy = NetworkLimits(exempt_local=True, stream_rate=1e6, stream_burst=1e6)
    strict = NetworkLimits(exempt_local=True, stream_rate=50, stream_burst=200)
    async with hub.network(A, limits=greedy).running() as a, hub.network(B, limits=strict).running() as b:
        b.handle(ECHO, echo)
        await connect(a, b)
        opened = 0
        with pytest.raises(NotConnected):
            for _ in range(10_000):
                with suppress(StreamReset):
                    async with await a.open_stream(B, ECHO):
                        opened += 1
        assert 200 <= opened <= 300
        assert b.statistics().penalties["too many streams"] >= 20
        assert not b.is_connected(A)


async def test_an_honest_peer_paces_itself_below_the_quota(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.001)) as (_, a, b):
        await connect(a, b)
        began = trio.current_time()
        for _ in range(1500):
            async with await a.open_stream(B, ECHO):
                pass
        assert trio.current_time() - began >= 1000 / 200 - 0.1
        assert b.statistics().penalties == {}


async def test_when_the_days_bytes_are_used_up_bulk_waits_for_tomorrow(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1))
    limits = NetworkLimits(exempt_local=True, max_bytes_per_day=30_000_000)
    async with hub.network(A, limits=limits).running() as a, hub.network(B).running() as b:
        for network in (a, b):
            network.handle("/sink", read_all_of)
            network.handle("/control", read_all_of, control=True)
        await connect(a, b)
        stream = await a.open_stream(B, "/sink", bulk=True)
        with trio.fail_after(60), pytest.raises(StreamReset):
            await stream.send(bytes(31_000_000))
        for bulk in (True, False):
            with pytest.raises(NetworkError, match="used up"):
                await a.open_stream(B, "/sink", bulk=bulk)
        with trio.fail_after(60):
            async with await a.open_stream(B, "/control") as stream:
                await stream.send(b"small things still go")
        await trio.sleep(25 * 3600)
        (await a.open_stream(B, "/sink", bulk=True)).reset()
