"""Subscribers to connection events neither hold up the network nor each other."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from owm.net import EventHub, PeerConnected
from tests.net.conformance import identity

EVENT = PeerConnected(identity(1).peer_id, inbound=True)


async def test_a_subscriber_that_never_reads_is_cut_off_and_the_others_are_not() -> None:
    hub = EventHub()
    lazy, keen = hub.subscribe([EVENT]), hub.subscribe([])
    for _ in range(10_000):
        hub.publish(EVENT)
        assert await keen.receive() == EVENT
    received = 0
    with pytest.raises(trio.EndOfChannel):
        while True:
            assert await lazy.receive() == EVENT
            received += 1
    assert 4096 <= received <= 4098


async def test_who_stopped_listening_is_forgotten_and_closing_ends_all() -> None:
    hub = EventHub()
    gone, there = hub.subscribe([]), hub.subscribe([])
    gone.close()
    hub.publish(EVENT)
    hub.close()
    assert await there.receive() == EVENT
    with pytest.raises(trio.EndOfChannel):
        await there.receive()


def test_importing_the_package_does_not_load_libp2p() -> None:
    code = "import sys, owm.net; sys.exit(any(name.split('.')[0] == 'libp2p' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
