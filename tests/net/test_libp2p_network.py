"""The network over TCP keeps the contract, and what only sockets can show."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from random import Random

import pytest
import trio

from owm.net import Network, NetworkLimits, PeerConnected, PeerDisconnected, Stream
from owm.net.errors import NetworkError, StreamReset
from owm.net.libp2p import Fault, FaultRule, Faults, KeepAlive, Libp2pNetwork
from tests.net.conformance import ECHO, HOLD, LIMITS, NetworkConformance, ask, connect, echo, eventually, identity
from tests.net.strangers import DATA, SYN, Stranger, frame


class TestLibp2pNetwork(NetworkConformance):
    _numbers = 0

    @asynccontextmanager
    async def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AsyncIterator[list[Network]]:
        async with AsyncExitStack() as stack:
            first, self._numbers = self._numbers + 1, self._numbers + count
            yield [
                await stack.enter_async_context(Libp2pNetwork(identity(number), limits=limits).running())
                for number in range(first, first + count)
            ]


async def test_crossing_dials_settle_to_a_working_state() -> None:
    for number in range(10):
        one, two = (Libp2pNetwork(identity(100 * number + n), limits=LIMITS) for n in (1, 2))
        for network in (one, two):
            network.handle(ECHO, echo)
        async with one.running(), two.running():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.connect, two.peer_id, two.addresses)
                nursery.start_soon(two.connect, one.peer_id, one.addresses)
            assert await ask(one, two, b"over") == b"over"
            assert await ask(two, one, b"back") == b"back"
            assert len(one.connections()) == len(two.connections()) == 1


@pytest.mark.slow
async def test_250_peers_that_come_and_go_leak_nothing() -> None:
    async with Libp2pNetwork(identity(1), limits=LIMITS).running() as network:
        tasks = len(network._nursery.child_tasks)
        for number in range(250):
            async with Stranger.connected(identity(1000 + number), network) as peer:
                await peer.send(frame(DATA, SYN, 1, 5, b"\x13/mul"))
        await eventually(lambda: not network.connections())
        await eventually(lambda: len(network._nursery.child_tasks) == tasks)
        await eventually(lambda: not network._library._swarm.connections)
        assert network.statistics().connections == network.statistics().inbound == network.statistics().streams == 0
        assert not network._library._attached and not network._server._serving
        async with Libp2pNetwork(identity(2), limits=LIMITS).running() as honest:
            await connect(honest, network)


async def test_a_frozen_peer_is_noticed_by_the_keep_alive() -> None:
    faults = Faults(Random(1))
    frozen = Libp2pNetwork(identity(1), limits=LIMITS, faults=faults)
    quick = KeepAlive(every=0.2, timeout=0.3)
    async with frozen.running(), Libp2pNetwork(identity(2), limits=LIMITS, keep_alive=quick).running() as watcher:
        watcher.handle(HOLD, echo)
        await connect(frozen, watcher)
        events = watcher.events()
        assert isinstance(await events.receive(), PeerConnected)
        stream = await frozen.open_stream(watcher.peer_id, HOLD)
        faults.add(FaultRule(Fault.BLACK_HOLE))
        await stream.send(b"my last words")
        with trio.fail_after(5):
            gone = await events.receive()
        assert gone == PeerDisconnected(frozen.peer_id, "the keep-alive timed out")


@pytest.mark.parametrize(
    ("rule", "received"),
    [
        (FaultRule(Fault.DROP, protocol=HOLD, after=1), [b"one", b"three"]),
        (FaultRule(Fault.DELAY, protocol=HOLD, after=1, seconds=0.05), [b"one", b"two", b"three"]),
        (FaultRule(Fault.GARBAGE, protocol=HOLD, after=1), [b"one", Random(1).randbytes(3), b"three"]),
        (FaultRule(Fault.CUT_BEFORE, protocol=HOLD, after=1), [b"one", None]),
        (FaultRule(Fault.CUT_AFTER, protocol=HOLD, after=1), [b"one", b"two", None]),
        (FaultRule(Fault.DROP, protocol="/another/1"), [b"one", b"two", b"three"]),
    ],
    ids=["drop", "delay", "garbage", "cut before", "cut after", "other protocols"],
)
async def test_faults_strike_where_the_rule_says(rule: FaultRule, received: list[bytes | None]) -> None:
    heard: list[bytes | None] = []
    news = trio.Event()

    async def listen(stream: Stream) -> None:
        nonlocal news
        try:
            while data := await stream.receive():
                heard.append(data)
                news.set()
        except StreamReset:
            heard.append(None)

    faults = Faults(Random(1))
    faults.add(replace(rule))
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS, faults=faults).running() as a,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as b,
    ):
        b.handle(HOLD, listen)
        await connect(a, b)
        stream = await a.open_stream(b.peer_id, HOLD)
        with suppress(StreamReset):
            for message in (b"one", b"two", b"three"):
                news = trio.Event()
                await stream.send(message)
                with trio.move_on_after(0.3):
                    await news.wait()
        await eventually(lambda: len(heard) >= len(received))
        assert heard == received


async def test_a_taken_address_is_refused_and_named() -> None:
    async with Libp2pNetwork(identity(1)).running() as first:
        second = Libp2pNetwork(identity(2), listen=first.addresses)
        with pytest.raises(NetworkError, match=f"{first.addresses[0]}: the address is in use"):
            async with second.running():
                pass


async def test_an_unspecified_address_is_told_as_those_of_the_machine() -> None:
    async with Libp2pNetwork(identity(1), listen=["/ip4/0.0.0.0/tcp/0"]).running() as network:
        assert network.addresses[-1].startswith("/ip4/127.0.0.1/tcp/")
        assert not any("0.0.0.0" in address for address in network.addresses)
    announcing = Libp2pNetwork(identity(2), announce=["/dns4/peer.example/tcp/9000"])
    async with announcing.running():
        assert announcing.addresses == ("/dns4/peer.example/tcp/9000",)


async def test_leaving_with_many_connections_takes_less_than_a_second() -> None:
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(Libp2pNetwork(identity(10 + n), limits=LIMITS).running()) for n in range(12)
        ]
        began = None
        async with Libp2pNetwork(identity(1), limits=LIMITS).running() as network:
            for peer in peers:
                await connect(peer, network)
            began = trio.current_time()
        assert trio.current_time() - began < 1.0


async def test_the_public_package_does_not_import_libp2p() -> None:
    script = "import sys, owm.net; assert not any(name.split('.')[0] == 'libp2p' for name in sys.modules)"
    assert (await trio.run_process([sys.executable, "-c", script])).returncode == 0
