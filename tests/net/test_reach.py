"""Addresses that are not IPv4: IPv6, and whatever a peer's own way of reaching brings."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from owm.net import NetworkLimits
from owm.net.errors import DialFailed, NetworkError
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, ask, connect, echo, eventually, identity


async def test_ipv6_works_like_ipv4() -> None:
    both = ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")
    try:
        async with (
            Libp2pNetwork(identity(1), listen=both, limits=LIMITS).running() as one,
            Libp2pNetwork(identity(2), listen=("/ip6/::1/tcp/0",), limits=LIMITS).running() as two,
        ):
            one.handle(ECHO, echo)
            six = [address for address in one.addresses if address.startswith("/ip6/")]
            assert len(one.addresses) == 2 and len(six) == 1
            await two.connect(one.peer_id, six)
            assert await ask(two, one, b"six") == b"six"
            assert two.connections()[0].address.startswith("/ip6/::1/tcp/")
            assert one.connections()[0].address.startswith("/ip6/::1/tcp/")
    except NetworkError as error:
        if "::1" in str(error):
            pytest.skip(f"this machine has no IPv6 loopback: {error}")
        raise


async def test_an_address_of_another_kind_is_reached_by_the_given_way() -> None:
    asked: list[str] = []
    async with Libp2pNetwork(identity(1), limits=LIMITS).running() as served:
        served.handle(ECHO, echo)
        port = int(served.addresses[0].rsplit("/", 1)[1])

        async def reach(address: str) -> trio.abc.Stream:
            asked.append(address)
            return await trio.open_tcp_stream("127.0.0.1", port)

        onion = "/onion3/vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd:9002"
        async with Libp2pNetwork(identity(2), limits=LIMITS, reach=reach).running() as dialler:
            await dialler.connect(served.peer_id, [onion])
            assert await ask(dialler, served, b"through") == b"through"
            assert asked == [onion]


async def test_without_such_a_way_the_address_says_so() -> None:
    async with Libp2pNetwork(identity(2), limits=LIMITS).running() as dialler:
        with pytest.raises(DialFailed) as caught:
            await dialler.connect(identity(1).peer_id, ["/onion3/abc:1"])
        assert "no way to reach" in caught.value.reasons["/onion3/abc:1"]


async def test_streams_beyond_the_quota_are_refused_and_held_against_the_peer() -> None:
    strict = NetworkLimits(exempt_local=True, stream_rate=1.0, stream_burst=20)
    greedy = NetworkLimits(exempt_local=True, stream_rate=1e6, stream_burst=1e6)
    async with (
        Libp2pNetwork(identity(1), limits=strict).running() as served,
        Libp2pNetwork(identity(2), limits=greedy).running() as flood,
        Libp2pNetwork(identity(3), limits=LIMITS).running() as honest,
    ):
        served.handle(ECHO, echo)
        await connect(flood, served)
        await connect(honest, served)
        answered = 0
        for _ in range(100):
            with suppress(NetworkError):
                answered += await ask(flood, served, b"x") == b"x"
        assert 20 <= answered <= 25
        assert served.statistics().penalties["too many streams"] >= 20
        await eventually(lambda: not served.is_connected(identity(2).peer_id))
        assert await ask(honest, served, b"still here") == b"still here"


async def test_a_name_of_this_machine_and_several_addresses_can_be_listened_on() -> None:
    listen = ("/dns/localhost/tcp/0", "/ip4/127.0.0.2/tcp/0")
    async with (
        Libp2pNetwork(identity(1), listen=listen, limits=LIMITS).running() as one,
        Libp2pNetwork(identity(2), limits=LIMITS).running() as two,
    ):
        one.handle(ECHO, echo)
        assert len(one.addresses) >= 2
        for address in one.addresses:
            await two.connect(one.peer_id, [address])
            assert await ask(two, one, b"here, too") == b"here, too"
            await two.disconnect(one.peer_id)
