"""The network over TCP keeps the contract, and what only sockets can show."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from random import Random

import pytest
import trio

from owm.net import Network, NetworkLimits, PeerConnected, PeerDisconnected, Stream
from owm.net._core_multistream import encode
from owm.net.errors import NetworkError, StreamReset
from owm.net.libp2p import Fault, FaultRule, Faults, KeepAlive, Libp2pNetwork
from tests.net.conformance import ECHO, HOLD, LIMITS, NetworkConformance, ask, connect, echo, eventually, identity
from tests.net.conformance_streams import StreamConformance
from tests.net.strangers import DATA, GO_AWAY, SYN, Stranger, frame


class TestLibp2pNetwork(NetworkConformance, StreamConformance):
    _numbers = 0

    @asynccontextmanager
    async def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AsyncIterator[list[Network]]:
        async with AsyncExitStack() as stack:
            first, self._numbers = self._numbers + 1, self._numbers + count
            yield [
                await stack.enter_async_context(
                    Libp2pNetwork(identity(number), limits=limits, keep_alive=KeepAlive(every=1.2)).running()
                )
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


async def test_a_stream_closed_and_then_reset_is_forgotten_below_too() -> None:
    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    async with (
        Libp2pNetwork(identity(1), limits=LIMITS).running() as a,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as b,
    ):
        b.handle(HOLD, hold, max_streams=100)
        await connect(a, b)
        for _ in range(50):
            stream = await a.open_stream(b.peer_id, HOLD)
            await stream.aclose()
            stream.reset()
        (connection,) = a._roster.all(b.peer_id)
        await eventually(lambda: len(connection.mux) == len(connection.streams) == 0)
        await eventually(lambda: b.statistics().streams == 0)


async def test_a_peer_that_says_that_it_goes_is_dialled_anew_when_it_is_needed() -> None:
    quick = KeepAlive(every=0.3)
    async with (
        Libp2pNetwork(identity(1), limits=replace(LIMITS, linger=1.0), keep_alive=quick).running() as network,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as peer,
    ):
        peer.handle(ECHO, echo)
        events = network.events()
        async with Stranger.connected(identity(2), network) as leaving:
            await eventually(lambda: network.is_connected(peer.peer_id))
            await leaving.send(frame(GO_AWAY, 0, 0, 0))  # and keeps the socket
            await eventually(lambda: not network.is_connected(peer.peer_id))
            assert await network.connect(peer.peer_id, peer.addresses) == peer.peer_id
            assert await ask(network, peer, b"well?") == b"well?"
            assert await leaving.is_cut(5)
        seen = [await events.receive() for _ in range(3)]
        assert [type(event) for event in seen] == [PeerConnected, PeerDisconnected, PeerConnected]
        assert network.is_connected(peer.peer_id) and network.statistics().connections == 1


async def test_streams_that_run_are_finished_with_a_peer_that_says_that_it_goes() -> None:
    quick = KeepAlive(every=0.3)
    limits = replace(LIMITS, linger=1.5)
    async with Libp2pNetwork(identity(1), limits=limits, keep_alive=quick).running() as network:
        network.handle(ECHO, echo)
        async with Stranger.connected(identity(2), network) as leaving:
            hello = encode("/multistream/1.0.0") + encode(ECHO)
            await leaving.send(frame(DATA, SYN, 1, len(hello), hello))
            await eventually(lambda: network._server._serving[identity(2).peer_id, ECHO] == 1)
            await leaving.send(frame(GO_AWAY, 0, 0, 0))
            await eventually(lambda: not network.is_connected(identity(2).peer_id))
            before = network.statistics().bytes_out
            await leaving.send(frame(DATA, 0, 1, 4, b"last"))
            await eventually(lambda: network.statistics().bytes_out > before)
            assert network.statistics().streams > 0
            assert await leaving.is_cut(5)


@pytest.mark.slow
async def test_a_slow_link_on_which_bytes_arrive_is_not_given_up() -> None:
    quick, rate = KeepAlive(every=0.3, timeout=0.5), 60_000
    throttled = trio.Event()
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS, keep_alive=quick).running() as a,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as b,
        trio.open_nursery() as nursery,
    ):
        got = 0

        async def sink(stream: Stream) -> None:
            nonlocal got
            while data := await stream.receive():
                got += len(data)

        b.handle(HOLD, sink)
        port = int(b.addresses[0].rsplit("/", 1)[1])

        async def proxy(near: trio.SocketStream) -> None:
            far = await trio.open_tcp_stream("127.0.0.1", port)

            async def forth() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await near.receive_some(rate // 20):
                        await far.send_all(data)
                        if throttled.is_set():
                            await trio.sleep(len(data) / rate)

            async with trio.open_nursery() as pumps, near, far:
                pumps.start_soon(forth)
                with suppress(trio.BrokenResourceError):
                    while data := await far.receive_some():
                        await near.send_all(data)
                pumps.cancel_scope.cancel()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        for listener in listeners:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        nursery.start_soon(trio.serve_listeners, proxy, listeners)
        await a.connect(b.peer_id, [f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"])
        stream = await a.open_stream(b.peer_id, HOLD, bulk=True)
        throttled.set()
        with trio.move_on_after(6) as scope:  # a dozen times the keep-alive's patience
            await stream.send(bytes(5_000_000))
        assert scope.cancelled_caught and a.is_connected(b.peer_id)
        assert got > rate * 3
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_after_a_crash_the_new_connection_is_used_and_kept() -> None:
    faults = Faults(Random(1))
    quick = KeepAlive(every=1.2, timeout=30.0)
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS, keep_alive=quick).running() as survivor,
        Libp2pNetwork(identity(2), limits=LIMITS, faults=faults).running() as crashed,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as again,
    ):
        survivor.handle(ECHO, echo)
        again.handle(ECHO, echo)
        await connect(crashed, survivor)
        await trio.sleep(0.1)
        stream = await crashed.open_stream(survivor.peer_id, ECHO)
        faults.add(FaultRule(Fault.BLACK_HOLE))
        await stream.send(b"my last words")
        await again.connect(survivor.peer_id, survivor.addresses)
        await eventually(lambda: len(list(survivor.live())) == 2)
        with trio.fail_after(2):
            assert await ask(survivor, again, b"back?") == b"back?"
        await trio.sleep(7)  # longer than the spare connection of a simultaneous dial is kept
        assert again.is_connected(survivor.peer_id)
        with trio.fail_after(2):
            assert await ask(survivor, again, b"still?") == b"still?"


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)], ids=["one way", "the other way"])
async def test_a_connection_that_does_not_answer_is_not_preferred_to_one_that_does(numbers: tuple[int, int]) -> None:
    faults = Faults(Random(1))
    quick = KeepAlive(every=1.2, timeout=30.0)
    here, there = map(identity, numbers)
    async with (
        Libp2pNetwork(here, limits=LIMITS, keep_alive=quick).running() as survivor,
        Libp2pNetwork(there, limits=LIMITS, faults=faults).running() as crashed,
        Libp2pNetwork(there, limits=LIMITS).running() as again,
    ):
        survivor.handle(ECHO, echo)
        again.handle(ECHO, echo)
        await connect(survivor, crashed)  # dialled from here, and the new one from there
        await trio.sleep(0.1)
        stream = await crashed.open_stream(survivor.peer_id, ECHO)
        faults.add(FaultRule(Fault.BLACK_HOLE))
        await stream.send(b"my last words")
        await again.connect(survivor.peer_id, survivor.addresses)
        await trio.sleep(2.5)
        with trio.fail_after(2):
            assert await ask(survivor, again, b"back?") == b"back?"
        await trio.sleep(6)  # longer than the spare connection of a simultaneous dial is kept
        assert again.is_connected(survivor.peer_id)
        with trio.fail_after(2):
            assert await ask(survivor, again, b"still?") == b"still?"


def test_a_keep_alive_that_peers_do_not_bear_is_a_mistake() -> None:
    for every, timeout in ((0.05, 10.0), (15.0, 0.0)):
        with pytest.raises(ValueError, match=r"a ping every|positive"):
            KeepAlive(every=every, timeout=timeout)


@pytest.mark.parametrize("known", [True, False], ids=["was identified", "left before that"])
async def test_a_peer_that_returns_at_once_is_identified_anew(known: bool) -> None:
    async with (
        Libp2pNetwork(identity(1), limits=LIMITS).running() as home,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as peer,
    ):
        peer.handle(ECHO, echo)
        for _ in range(5):
            await connect(peer, home)
            if known:
                await eventually(lambda: ECHO in home.connections()[0].protocols)
            await peer.disconnect(home.peer_id)
            await eventually(lambda: not home.is_connected(peer.peer_id))
        await connect(peer, home)
        await eventually(lambda: ECHO in home.connections()[0].protocols)


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
