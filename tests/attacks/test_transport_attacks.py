"""Attacks on the real transport, over real sockets: strangers that lie, flood, dawdle, impersonate and reflect."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest
import trio
import trio.testing

from owm.identity import Identity
from owm.net import Call, Calls, Network, NetworkLimits, Stream
from owm.net._core_multistream import encode
from owm.net._core_noise import HandshakeFailed, handshake_payload
from owm.net._secure import Credentials, secure
from owm.net._transport import parse_endpoint
from owm.net.errors import DialFailed, NetworkError, StreamReset
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, ask, connect, echo, eventually, identity
from tests.net.strangers import DATA, PING, RST, SYN, WINDOW, Stranger, dial, frame, hangs_up

MULTISTREAM = encode("/multistream/1.0.0")
PING_PROTOCOL = "/ipfs/ping/1.0.0"
MALLORY = identity(666)
MIB = 1024 * 1024


@asynccontextmanager
async def victim(limits: NetworkLimits = LIMITS) -> AsyncIterator[Libp2pNetwork]:
    network = Libp2pNetwork(identity(1), limits=limits)
    network.handle(ECHO, echo)
    async with network.running():
        yield network


async def honest_peers_are_served(network: Network) -> None:
    async with Libp2pNetwork(identity(2), limits=LIMITS).running() as honest:
        await connect(honest, network)
        assert await ask(honest, network, b"still there?") == b"still there?"


class Memory:
    """How much more is allocated than at the start."""

    def __enter__(self) -> Callable[[], int]:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        return lambda: tracemalloc.get_traced_memory()[1] - before

    def __exit__(self, *args: object) -> None:
        tracemalloc.stop()


@pytest.mark.attack("T1")
@pytest.mark.parametrize(
    "words",
    [b"\xff\xff\xff\xff\x0f", MULTISTREAM + b"\xff\xff\xff\xff\x7f", MULTISTREAM + encode("/noise") + b"\xff\xff"],
    ids=["greeting", "proposal", "handshake message"],
)
async def test_a_length_of_gigabytes_before_the_handshake_is_refused_before_anything_is_allocated(words: bytes) -> None:
    async with victim() as network:
        await connect_and_leave(network)
        with Memory() as grown:
            async with dial(network) as stream:
                await stream.send_all(words)
                with trio.fail_after(10):
                    assert await hangs_up(stream)
            assert grown() < MIB
        assert network.statistics().handshakes_failed == 1
        await honest_peers_are_served(network)


@pytest.mark.attack("T1")
async def test_a_frame_of_4_gb_ends_the_connection_and_costs_the_peer_its_standing() -> None:
    async with victim() as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            with Memory() as grown:
                await mallory.send(frame(DATA, SYN, 1, 0xFFFFFFFF) + bytes(60_000))
                assert await mallory.is_cut(10)
                assert grown() < MIB
        assert network.penalties.score(MALLORY.peer_id, 0) <= -10
        assert network.statistics().penalties == {"transport protocol violation": 1}
        await honest_peers_are_served(network)


@pytest.mark.attack("T2")
async def test_streams_without_end_stop_at_the_cap_and_then_end_the_connection() -> None:
    most = 32
    async with victim(NetworkLimits(exempt_local=True, max_streams_per_peer=most)) as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            with Memory() as grown:
                seen = 0
                with suppress(trio.BrokenResourceError):
                    for number in range(5000):
                        await mallory.send(frame(WINDOW, SYN, 2 * number + 1, 0))
                        seen = max(seen, network.statistics().streams)
                assert await mallory.is_cut(10)
                assert 0 < seen <= most
                assert grown() < 4 * MIB
        assert network.statistics().penalties["too many streams"] > 0
        await honest_peers_are_served(network)


@pytest.mark.attack("T2")
async def test_streams_opened_and_reset_at_once_without_end_are_stopped() -> None:
    async with victim() as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            with suppress(trio.BrokenResourceError):
                for number in range(5000):
                    await mallory.send(frame(WINDOW, SYN, 2 * number + 1, 0) + frame(WINDOW, RST, 2 * number + 1, 0))
            assert await mallory.is_cut(10)
        await honest_peers_are_served(network)


@pytest.mark.attack("T2")
async def test_a_peer_that_ignores_the_window_is_cut_at_the_window() -> None:
    taken = trio.Event()

    async def never_reads(stream: Stream) -> None:
        taken.set()
        await trio.sleep_forever()

    async with victim() as network:
        network.handle("/sloth/1", never_reads)
        async with Stranger.connected(MALLORY, network) as mallory:
            hello = MULTISTREAM + encode("/sloth/1")
            await mallory.send(frame(DATA, SYN, 1, len(hello), hello))
            with trio.fail_after(10):
                await taken.wait()
            with Memory() as grown:
                with suppress(trio.BrokenResourceError):
                    for _ in range(1000):  # 32 MB
                        await mallory.send(frame(DATA, 0, 1, 32_000, bytes(32_000)))
                assert await mallory.is_cut(10)
                assert grown() < 8 * MIB
        assert network.penalties.score(MALLORY.peer_id, 0) < 0
        await honest_peers_are_served(network)


@pytest.mark.attack("T2")
async def test_a_peer_that_makes_us_answer_and_never_reads_is_cut() -> None:
    async with victim() as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            with Memory() as grown, suppress(trio.BrokenResourceError):
                for number in range(1, 40_001, 2):
                    await mallory.send(frame(DATA, SYN, number, 3, b"\x01x\n"))
            assert grown() < 8 * MIB
        await eventually(lambda: not network.is_connected(MALLORY.peer_id))
        await honest_peers_are_served(network)


@pytest.mark.attack("T4")
async def test_dawdlers_lose_their_place_at_the_handshakes_deadline() -> None:
    limits = NetworkLimits(exempt_local=True, handshake_timeout=0.4)
    async with victim(limits) as network:
        cut: list[float] = []

        async def dawdle() -> None:
            async with dial(network) as stream:
                began = trio.current_time()
                with suppress(trio.BrokenResourceError):
                    for byte in MULTISTREAM + encode("/noise") + bytes(1000):
                        await stream.send_all(bytes([byte]))
                        with trio.move_on_after(0.05):
                            if await hangs_up(stream):
                                break
                cut.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(dawdle)
            await honest_peers_are_served(network)
        assert len(cut) == 30
        assert max(cut) < 2.0
        assert network.statistics().handshakes_failed == 30


@pytest.mark.attack("T4")
async def test_one_subnet_has_only_so_many_handshakes_under_way() -> None:
    async with victim(NetworkLimits(max_handshakes_per_subnet=3)) as network:
        async with dial(network), dial(network), dial(network):
            await eventually(lambda: network._admission._handshakes.total() == 3)
            async with dial(network) as fourth:
                with trio.fail_after(10):
                    assert await hangs_up(fourth)
            assert network.statistics().refused == 1
        await eventually(lambda: network._admission._handshakes.total() == 0)
        await honest_peers_are_served(network)


@pytest.mark.attack("T4")
async def test_a_stream_that_never_says_what_it_wants_is_reset() -> None:
    async with victim(NetworkLimits(handshake_timeout=0.2)) as network, Stranger.connected(MALLORY, network) as mallory:
        await mallory.send(frame(DATA, SYN, 1, 3, MULTISTREAM[:3]))
        (connection,) = network._roster.all(MALLORY.peer_id)
        await eventually(lambda: 1 in connection.streams)
        began = trio.current_time()
        await eventually(lambda: 1 not in connection.streams)
        assert trio.current_time() - began < 2.0
        assert network.is_connected(MALLORY.peer_id)


@pytest.mark.attack("T5")
@pytest.mark.parametrize("claim", ["nobody", "garbage", "the words of another"])
async def test_who_does_not_prove_its_identity_is_nobody(claim: str) -> None:
    honest = Credentials.of(MALLORY)
    other_static = bytes(32)
    payload = {
        "nobody": b"",
        "garbage": b"\xff" * 64,
        "the words of another": handshake_payload(identity(3), other_static, "/yamux/1.0.0"),
    }[claim]
    async with victim() as network:
        async with dial(network) as stream:
            with suppress(HandshakeFailed, trio.BrokenResourceError):
                await secure(stream, Credentials(honest.peer_id, honest.static_private, payload), initiator=True)
            with trio.fail_after(10):
                assert await hangs_up(stream)
        assert network.connections() == ()
        assert network.statistics().handshakes_failed == 1


@pytest.mark.attack("T5")
async def test_a_peer_that_speaks_only_plaintext_is_not_let_in() -> None:
    async with victim() as network, dial(network) as stream:
        await stream.send_all(MULTISTREAM + encode("/plaintext/2.0.0"))
        answer = b""
        with trio.fail_after(10):
            while len(answer) < len(MULTISTREAM + encode("na")):
                answer += await stream.receive_some(100)
        assert answer == MULTISTREAM + encode("na")
        assert network.connections() == ()


@pytest.mark.attack("T6")
async def test_somebody_else_at_the_address_fails_the_dial_at_once() -> None:
    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS).running() as dialler:
        with trio.fail_after(2), pytest.raises(DialFailed) as failure:
            await dialler.connect(identity(3).peer_id, network.addresses)
        assert failure.value.reasons == {network.addresses[0]: f"wrong peer id: {network.peer_id} answered"}
        assert dialler.connections() == ()
        await eventually(lambda: network.connections() == ())


@pytest.mark.attack("T7")
async def test_the_listener_survives_whatever_comes() -> None:
    random = Random(7)
    beginnings = [b"", MULTISTREAM, MULTISTREAM + encode("/noise"), MULTISTREAM + encode("/noise") + b"\0\x20"]
    async with victim() as network:

        async def bother() -> None:
            async with dial(network) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(random.choice(beginnings) + random.randbytes(random.randrange(200)))
                if random.random() < 0.5:
                    with trio.move_on_after(0.2):
                        await hangs_up(stream)

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(bother)
        await honest_peers_are_served(network)
        await eventually(lambda: network._admission._handshakes.total() == 0)


@pytest.mark.attack("T7")
async def test_a_handler_that_raises_hurts_nobody_but_its_stream() -> None:
    async def explode(stream: Stream) -> None:
        await stream.receive()
        raise RuntimeError("a bug in a handler")

    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS).running() as peer:
        network.handle("/explode/1", explode)
        await connect(peer, network)
        for _ in range(20):
            stream = await peer.open_stream(network.peer_id, "/explode/1")
            await stream.send(b"x")
            with pytest.raises(StreamReset):
                await stream.receive()
        assert await ask(peer, network, b"well?") == b"well?"


@pytest.mark.attack("T10")
async def test_a_peer_has_two_ping_streams_and_a_quota_on_them() -> None:
    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS).running() as pinger:
        await connect(pinger, network)
        first = await pinger.open_stream(network.peer_id, PING_PROTOCOL)
        await pinger.open_stream(network.peer_id, PING_PROTOCOL)
        with pytest.raises(NetworkError):
            await pinger.open_stream(network.peer_id, PING_PROTOCOL)
        answered = 0
        with suppress(StreamReset):
            for _ in range(500):
                await first.send(bytes(32))
                answered += len(await first.receive()) // 32
        assert 50 <= answered < 100
        assert network.statistics().penalties == {"ping flood": 1}


@pytest.mark.attack("T10")
async def test_a_flood_of_keep_alive_pings_ends_the_connection() -> None:
    async with victim() as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            await mallory.send(b"".join(frame(PING, SYN, 0, number) for number in range(1000)))
            assert await mallory.is_cut(10)
        assert network.penalties.score(MALLORY.peer_id, 0) <= -10
        await honest_peers_are_served(network)


@pytest.mark.attack("T10")
async def test_a_flood_of_identify_requests_ends_the_connection() -> None:
    hello = MULTISTREAM + encode("/ipfs/id/1.0.0")
    async with victim() as network:
        async with Stranger.connected(MALLORY, network) as mallory:
            with suppress(trio.BrokenResourceError):
                for number in range(1, 10_001, 2):
                    await mallory.send(frame(DATA, SYN, number, len(hello), hello))
                    served = network._server._serving[MALLORY.peer_id, "/ipfs/id/1.0.0"]
                    assert served <= 4
            assert await mallory.is_cut(10)
        await honest_peers_are_served(network)


@pytest.mark.attack("T11")
async def test_nothing_is_decompressed_so_a_bomb_stays_as_small_as_it_was_sent() -> None:
    """No layer negotiates compression: multistream, Noise, Yamux and frames carry bytes as they are. So there is no
    bomb to defuse, and what is left to bound is the frame itself: what is above the cap is refused by its length."""
    bomb = zlib.compress(bytes(64 * MIB), 9)
    assert len(bomb) < MIB // 8
    limit, received = len(bomb), list[int]()

    async def handler(call: Call) -> None:
        received.append(len(call.request))
        await call.reply(b"ok")

    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS).running() as peer:
        served = Calls(network, "/bomb/1", max_request=limit)
        served.serve(handler)
        await connect(peer, network)
        async with served.running(), Calls(peer, "/bomb/1", max_request=64 * MIB).running() as calls:
            with Memory() as grown:
                assert await calls.request(network.peer_id, bomb, timeout=5) == b"ok"
                with pytest.raises(NetworkError):
                    await calls.request(network.peer_id, 2 * bomb, timeout=5)
                assert grown() < 4 * MIB
        assert received == [limit]


@pytest.mark.attack("T12")
async def test_an_echo_of_our_own_handshake_is_not_taken_for_a_peer() -> None:
    async with Libp2pNetwork(identity(2), limits=LIMITS).running() as dialler, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def mirror(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(65536):
                    await stream.send_all(data)

        nursery.start_soon(trio.serve_listeners, mirror, listeners)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(5), pytest.raises(DialFailed):
            await dialler.connect(None, [f"/ip4/127.0.0.1/tcp/{port}"])
        assert dialler.connections() == ()
        nursery.cancel_scope.cancel()


@pytest.mark.attack("T12")
async def test_a_packet_of_ours_sent_back_to_us_ends_the_connection() -> None:
    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS).running() as peer:
        endpoint = parse_endpoint(network.addresses[0])
        assert endpoint is not None
        reflecting = False

        async def proxy(near: trio.SocketStream) -> None:
            far = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            sending = {near: trio.Lock(), far: trio.Lock()}  # both pumps may have something for one end

            async def pump(source: trio.SocketStream, target: trio.SocketStream, back: bool) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await source.receive_some(65536):
                        end = source if back and reflecting else target
                        async with sending[end]:
                            await end.send_all(data)

            async with trio.open_nursery() as pumps, near, far:
                pumps.start_soon(pump, near, far, True)
                await pump(far, near, False)
                pumps.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, proxy, listeners)
            await peer.connect(network.peer_id, [f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"])
            stream = await peer.open_stream(network.peer_id, ECHO)
            reflecting = True
            await stream.send(b"is that my own voice?")
            with trio.fail_after(5), pytest.raises(StreamReset, match="the peer did not seal"):
                await stream.receive()
            await eventually(lambda: not peer.is_connected(network.peer_id))
            nursery.cancel_scope.cancel()


async def connect_and_leave(network: Network) -> None:
    """Let everything be loaded that a first connection loads, before memory is measured."""
    async with Libp2pNetwork(Identity(bytes([9]) * 32), limits=LIMITS).running() as first:
        await connect(first, network)
    await eventually(lambda: not network.connections())


@pytest.mark.attack("T7")
async def test_a_breach_while_our_last_words_are_stuck_ends_that_connection_and_no_other() -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # a socket that takes nothing until the peer reads

    async def reach(address: str) -> trio.abc.Stream:
        return ours

    async with Libp2pNetwork(identity(1), limits=LIMITS, reach=reach).running() as network, trio.open_nursery() as run:
        network.handle(ECHO, echo)
        run.start_soon(network.connect, MALLORY.peer_id, ["/onion3/mallory"])
        secured = await secure(theirs, Credentials.of(MALLORY), initiator=False)
        with trio.move_on_after(0.3):
            while await theirs.receive_some(65536):
                pass
        assert network.is_connected(MALLORY.peer_id)
        await theirs.send_all(secured.session.seal(frame(9, 0, 0, 0)))
        await trio.sleep(0.02)
        await network.disconnect(MALLORY.peer_id)  # has something to say, too, and the writer is woken
        await eventually(lambda: not network.is_connected(MALLORY.peer_id))
        assert network.penalties.score(MALLORY.peer_id, 0) <= -10
        await honest_peers_are_served(network)
        await trio.aclose_forcefully(theirs)


HOSTILE_HOSTS = [
    "a" * 70,
    "a\0b",
    "\ud800",
    "a..b",
    "*" * 5,
    "xn--\u2028",
    "ip 4",
    "-",
    "a" * 300,
    "1.2.3",
    "::1%\0",
    "",
]


@pytest.mark.attack("T7")
@pytest.mark.parametrize("protocol", ["ip4", "ip6", "dns", "dns4", "dns6"])
async def test_a_hostile_address_is_a_reason_and_no_more(protocol: str) -> None:
    async with victim() as network:
        for number, host in enumerate(HOSTILE_HOSTS):
            address = f"/{protocol}/{host}/tcp/1"
            assert parse_endpoint(address) is None
            with trio.fail_after(5), pytest.raises(DialFailed) as failure:
                await network.connect(identity(1000 + number).peer_id, [address])
            assert list(failure.value.reasons) == [address]
        await honest_peers_are_served(network)


@pytest.mark.attack("T7")
async def test_a_way_that_fails_in_an_unforeseen_manner_does_not_spoil_the_others() -> None:
    async def reach(address: str) -> trio.abc.Stream:
        raise UnicodeError("label too long")

    async with victim() as network, Libp2pNetwork(identity(2), limits=LIMITS, reach=reach).running() as dialler:
        strange = "/onion3/strange"
        with trio.fail_after(5):
            await dialler.connect(network.peer_id, [strange, *network.addresses])
        with pytest.raises(DialFailed) as failure:
            await dialler.connect(identity(3).peer_id, [strange])
        assert failure.value.reasons == {strange: "an unforeseen error: UnicodeError"}


def test_addresses_that_can_be_dialled_are_read() -> None:
    for address, host in {
        "/ip4/127.0.0.1/tcp/9000": "127.0.0.1",
        "/ip6/2001:db8::1/tcp/9000": "2001:db8::1",
        "/ip6/fe80::1%eth0/tcp/9000": "fe80::1%eth0",
        "/dns4/peer_1.example.org/tcp/9000": "peer_1.example.org",
        "/dns/b\u00fccher.example/tcp/9000": "xn--bcher-kva.example",
    }.items():
        endpoint = parse_endpoint(address)
        assert endpoint is not None and endpoint.host == host


@pytest.mark.attack("T3")
async def test_silent_sockets_of_several_subnets_keep_no_protected_peer_out() -> None:
    limits = NetworkLimits(
        max_connections=20, max_inbound=16, high_water=18, low_water=15, reserved_protected=4, max_handshakes=16
    )
    friend = identity(7)
    async with victim(limits) as network, Libp2pNetwork(friend, limits=LIMITS).running() as arriving:
        network.protect(friend.peer_id, "treasury")
        endpoint = parse_endpoint(network.addresses[0])
        assert endpoint is not None
        sockets = []
        for subnet in (11, 12, 13):  # groups of their own, with eight silent sockets each
            for _ in range(8):
                silent = trio.socket.socket()
                await silent.bind((f"127.{subnet}.0.1", 0))
                await silent.connect((endpoint.host, endpoint.port))
                sockets.append(silent)
        await eventually(lambda: network._admission._handshakes.total() == 16)
        await connect(arriving, network)
        await honest_peers_are_served(network)
        assert network.is_connected(friend.peer_id)
        assert network.statistics().refused >= len(sockets) - 16
        for silent in sockets:
            silent.close()


@pytest.mark.attack("T2")
async def test_what_waits_unread_is_bounded_for_one_peer_and_for_all_and_blamed_on_nobody() -> None:
    limits = NetworkLimits(exempt_local=True, max_unread_per_peer=2 * MIB, max_unread=4 * MIB)
    async with victim(limits) as network:

        async def never_reads(stream: Stream) -> None:
            await trio.sleep_forever()

        network.handle("/sloth/1", never_reads, max_streams=100)
        hello = MULTISTREAM + encode("/sloth/1")
        kept: list[int] = []

        async def fill(number: int) -> None:
            async with Stranger.connected(identity(number), network) as peer:
                for stream in range(1, 41, 2):  # 5 MB, and never more than the window that is granted
                    await peer.send(frame(DATA, SYN, stream, len(hello), hello))
                    for _ in range(8):
                        await peer.send(frame(DATA, 0, stream, 31_000, bytes(31_000)))
                await trio.sleep(0.3)
                kept.append(sum(end.buffered for end in network.live()))
                assert network.is_connected(identity(number).peer_id)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for number in range(700, 705):
                nursery.start_soon(fill, number)
            await honest_peers_are_served(network)
        assert max(kept) <= 4 * MIB + 6 * 256 * 1024
        assert max(kept) > 3 * MIB
        assert network.statistics().penalties == {}
