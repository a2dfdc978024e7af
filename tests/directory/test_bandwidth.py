"""Bandwidth over the real transport."""

from __future__ import annotations

import pytest

from owm.clock import SystemClock
from owm.directory.bandwidth import BandwidthService
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import identity

pytestmark = pytest.mark.slow


async def test_a_probe_over_tcp_is_answered_and_timed() -> None:
    async with Libp2pNetwork(identity(1)).running() as one, Libp2pNetwork(identity(2)).running() as two:
        BandwidthService(one, "/probe/1", SystemClock())
        prober = BandwidthService(two, "/probe/1", SystemClock())
        await two.connect(one.peer_id, one.addresses)
        rate = await prober.probe(one.peer_id)
        assert rate is not None and rate > 50, "the loopback is no slower than a home's line"
        assert prober.mbps == rate and list(prober.samples) == [one.peer_id]
        assert await prober.probe(one.peer_id) is None, "once per interval"
        assert prober.mbps == rate
