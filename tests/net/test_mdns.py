"""Peers of one network find each other on the local network, those of another are not seen."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from owm.net.mdns import LocalDiscovery
from tests.net.conformance import identity

pytestmark = pytest.mark.slow

ONE, TWO, OTHER = (identity(number).peer_id for number in (1, 2, 3))
NETWORK = "0123456789abcdef" * 2


async def test_peers_of_the_same_network_are_found_with_their_addresses() -> None:
    here = ["127.0.0.1"]
    one = LocalDiscovery(ONE, NETWORK, lambda: ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"], here)
    two = LocalDiscovery(TWO, NETWORK, lambda: ["/ip4/127.0.0.1/tcp/4002"], here)
    other = LocalDiscovery(OTHER, "f" * 32, lambda: ["/ip4/127.0.0.1/tcp/4003"], here)
    async with one.running(), two.running(), other.running():
        with trio.move_on_after(20):
            while not (one.peers() and two.peers()):  # noqa: ASYNC110
                await trio.sleep(0.1)
        assert one.peers() == [(TWO, ("/ip4/127.0.0.1/tcp/4002",))]
        assert two.peers() == [(ONE, ("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"))]
        assert other.peers() == []


async def test_without_multicast_nothing_is_found_and_nothing_breaks() -> None:
    nowhere = LocalDiscovery(ONE, NETWORK, lambda: ["/ip4/127.0.0.1/tcp/4001"], ["203.0.113.7"])
    async with nowhere.running():
        await trio.lowlevel.checkpoint()
    assert nowhere.peers() == []
