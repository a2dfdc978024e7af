"""Our transport beside py-libp2p's own data path: processor time per message, throughput, latency under load, memory.

Both ends run in this process, so each figure is the cost of sender and receiver together.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import libp2p
import multiaddr
import psutil
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_static_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux

from benchmarks._report import Result, main
from owm.identity import Identity
from owm.net import NetworkLimits, Stream
from owm.net.libp2p import Libp2pNetwork

logging.getLogger("libp2p").setLevel(logging.CRITICAL)

ECHO: Final = "/bench/echo/1"
SINK: Final = "/bench/sink/1"
MESSAGE: Final = bytes(300)
CHUNK: Final = bytes(64 * 1024)
LIMITS: Final = NetworkLimits(exempt_local=True, max_connections=400, max_inbound=350, high_water=390, low_water=380)
BASELINE: Final = "py-libp2p"


@dataclass
class Counter:
    """Bytes that a sink has received."""

    received: int = 0
    wanted: int = 0
    reached: trio.Event | None = None

    def add(self, size: int) -> None:
        self.received += size
        if self.reached is not None and self.received >= self.wanted:
            self.reached.set()

    async def until(self, wanted: int) -> None:
        if self.received < wanted:
            self.wanted, self.reached = wanted, trio.Event()
            await self.reached.wait()


@dataclass
class Arm:
    """One of the two data paths, as the measurements use it."""

    send: Callable[[bytes], Awaitable[None]]  #: on a stream to the sink
    sunk: Counter
    ask: Callable[[bytes], Awaitable[None]]  #: on a stream to the echo, answer awaited
    more: Callable[[], Awaitable[Callable[[bytes], Awaitable[None]]]]  #: a further stream to the sink, for bulk


@asynccontextmanager
async def ours() -> AsyncIterator[Arm]:
    counter = Counter()

    async def sink(stream: Stream) -> None:
        while data := await stream.receive(1 << 20):
            counter.add(len(data))

    async def echo(stream: Stream) -> None:
        while data := await stream.receive():
            await stream.send(data)

    a, b = (Libp2pNetwork(Identity.generate(), limits=LIMITS) for _ in range(2))
    b.handle(SINK, sink)
    b.handle(ECHO, echo)
    async with a.running(), b.running():
        await a.connect(b.peer_id, b.addresses)
        await trio.sleep(0.3)  # identify is no part of what is measured
        one_way, both_ways = await a.open_stream(b.peer_id, SINK), await a.open_stream(b.peer_id, ECHO)

        async def ask(message: bytes) -> None:
            await both_ways.send(message)
            left = len(message)
            while left:
                left -= len(await both_ways.receive())

        async def more() -> Callable[[bytes], Awaitable[None]]:
            return (await a.open_stream(b.peer_id, SINK, bulk=True)).send

        yield Arm(one_way.send, counter, ask, more)


def library_host() -> Any:
    keys = create_new_key_pair(Identity.generate().seed)
    noise = NoiseTransport(keys, noise_privkey=create_static_key_pair().private_key)
    host = libp2p.new_host(key_pair=keys, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})

    async def never() -> None:
        """No connections but those that are measured."""

    host.get_network().auto_connector.maybe_connect = never
    return host


@asynccontextmanager
async def library() -> AsyncIterator[Arm]:
    counter = Counter()

    async def sink(stream: Any) -> None:
        try:
            while True:
                counter.add(len(await stream.read(1 << 16)))
        except (StreamEOF, StreamError):
            return

    async def echo(stream: Any) -> None:
        try:
            while True:
                await stream.write(await stream.read(1 << 16))
        except (StreamEOF, StreamError):
            return

    a, b = library_host(), library_host()
    b.set_stream_handler(TProtocol(SINK), sink)
    b.set_stream_handler(TProtocol(ECHO), echo)
    anywhere = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]
    async with a.run(anywhere), b.run(anywhere):
        await dial_library(a, b)
        await trio.sleep(0.3)
        one_way = await a.new_stream(b.get_id(), [TProtocol(SINK)])
        both_ways = await a.new_stream(b.get_id(), [TProtocol(ECHO)])

        async def ask(message: bytes) -> None:
            await both_ways.write(message)
            left = len(message)
            while left:
                left -= len(await both_ways.read(1 << 16))

        async def more() -> Callable[[bytes], Awaitable[None]]:
            return (await a.new_stream(b.get_id(), [TProtocol(SINK)])).write

        yield Arm(one_way.write, counter, ask, more)


async def dial_library(a: Any, b: Any) -> None:
    address = next(address for address in b.get_network().listeners.values()).get_addrs()[0]
    await a.get_network().dial_addr(address, b.get_id())


@dataclass
class Costs:
    one_way: float  #: CPU us per 300-byte message
    round_trip: float  #: CPU us per 300 bytes there and back
    bulk_cpu: float  #: CPU s per 100 MB
    bulk_rate: float  #: MB/s
    delay: float  #: ms, 99th percentile of a round trip while bulk runs


async def measure(arm: Arm, count: int, size: int) -> Costs:
    for _ in range(200):
        await arm.ask(MESSAGE)

    async def one_way() -> None:
        for _ in range(count):
            await arm.send(MESSAGE)
            await arm.sunk.until(arm.sunk.received + 1)  # no batching: each arrives before the next one leaves

    async def round_trips() -> None:
        for _ in range(count):
            await arm.ask(MESSAGE)

    async def bulk(send: Callable[[bytes], Awaitable[None]], amount: int) -> None:
        target = arm.sunk.received + amount // len(CHUNK) * len(CHUNK)
        for _ in range(amount // len(CHUNK)):
            await send(CHUNK)
        await arm.sunk.until(target)

    cpu_one_way, _ = await timed(one_way)
    cpu_round_trip, _ = await timed(round_trips)
    send = await arm.more()
    cpu_bulk, wall = await timed(lambda: bulk(send, size))
    delays: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bulk_for_ever, send)
        await trio.sleep(0.05)
        for _ in range(max(200, count // 8)):
            began = time.perf_counter()
            await arm.ask(MESSAGE)
            delays.append(time.perf_counter() - began)
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    return Costs(
        cpu_one_way / count * 1e6,
        cpu_round_trip / count * 1e6,
        cpu_bulk * 1e8 / size,
        size / 1e6 / wall,
        sorted(delays)[int(len(delays) * 0.99)] * 1e3,
    )


async def bulk_for_ever(send: Callable[[bytes], Awaitable[None]]) -> None:
    while True:
        await send(CHUNK)


async def timed(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """CPU and wall seconds."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return time.process_time() - cpu, time.perf_counter() - wall


async def connecting(count: int) -> tuple[float, float]:
    """CPU ms per new connection until both sides are identified: ours, the library's."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Libp2pNetwork(Identity.generate(), limits=LIMITS).running())
        clients = [
            await stack.enter_async_context(Libp2pNetwork(Identity.generate(), limits=LIMITS).running())
            for _ in range(count)
        ]

        async def connect_ours() -> None:
            for client in clients:
                await client.connect(server.peer_id, server.addresses)
                while not (client.connections()[0].protocols and server._library.identified(client.peer_id)[1]):  # noqa: ASYNC110 - the same polling in both arms
                    await trio.sleep(0.001)

        cpu_ours, _ = await timed(connect_ours)
    anywhere = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]
    async with AsyncExitStack() as stack:
        hosts = [library_host() for _ in range(count + 1)]
        for host in hosts:
            await stack.enter_async_context(host.run(anywhere))
        target = hosts[0]

        async def connect_library() -> None:
            for host in hosts[1:]:
                await dial_library(host, target)
                while not (knows(host, target) and knows(target, host)):  # noqa: ASYNC110 - the same polling in both arms
                    await trio.sleep(0.001)

        cpu_library, _ = await timed(connect_library)
    return cpu_ours / count * 1e3, cpu_library / count * 1e3


def knows(host: Any, other: Any) -> bool:
    return other.get_id() in host.get_peerstore().peer_ids() and bool(
        host.get_peerstore().get_protocols(other.get_id())
    )


async def coming_and_going(peers: int, times: int) -> tuple[float, int]:
    """Bytes of memory that each further connection costs for good, and connections left over.

    The first two rounds are left out: allocators and caches fill up then.
    """
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Libp2pNetwork(Identity.generate(), limits=LIMITS).running())
        clients = [
            await stack.enter_async_context(Libp2pNetwork(Identity.generate(), listen=(), limits=LIMITS).running())
            for _ in range(peers)
        ]
        before = 0
        for turn in range(times + 2):
            if turn == 2:
                gc.collect()
                before = process.memory_info().rss
            for client in clients:
                await client.connect(server.peer_id, server.addresses)
                await client.disconnect(server.peer_id)
        with trio.move_on_after(5):
            while server.statistics().connections:  # noqa: ASYNC110
                await trio.sleep(0.01)
        gc.collect()
        return (process.memory_info().rss - before) / (peers * times), server.statistics().connections


def run(quick: bool) -> Sequence[Result]:
    """Messages, bulk, latency under load, new connections, leaks."""

    async def everything() -> Sequence[Result]:
        count, size = (1500, 50_000_000) if quick else (10_000, 200_000_000)
        async with ours() as arm:
            us = await measure(arm, count, size)
        async with library() as arm:
            them = await measure(arm, count, size)
        new_us, new_them = await connecting(20 if quick else 100)
        slope, left = await coming_and_going(50 if quick else 250, 4 if quick else 20)
        return [
            Result("CPU per 300 B message one way", "us", us.one_way, them.one_way, BASELINE, 0.3),
            Result("CPU per 300 B round trip", "us", us.round_trip, them.round_trip, BASELINE, 0.25),
            Result("CPU per 100 MB one way", "s", us.bulk_cpu, them.bulk_cpu, BASELINE, 0.4),
            Result("throughput of one stream", "MB/s", us.bulk_rate, them.bulk_rate, BASELINE),
            Result("CPU per new connection, identify included", "ms", new_us, new_them, BASELINE),
            Result("round trip of 300 B beside bulk, p99", "ms", us.delay, goal=10),
            Result("the same on the library's data path, p99", "ms", them.delay),
            Result("memory kept per connection that came and went", "B", slope),
            Result("connections left over", "", left, goal=0),
        ]

    return trio.run(everything)


if __name__ == "__main__":
    main("transport", run)
