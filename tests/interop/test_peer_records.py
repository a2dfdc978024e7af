"""The signed peer records by which go-libp2p, js-libp2p and our own peers identify themselves can be passed on."""

from __future__ import annotations

import os

import pytest
import trio

from owm.identity import PeerId
from owm.net import NetworkLimits, open_peer_record
from owm.net.libp2p import Libp2pNetwork
from tests.foreign import GoPeer, JsPeer, foreign_missing
from tests.net.conformance import identity

LIMITS = NetworkLimits(exempt_local=True)
needs_foreign = pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing())


def network(number: int) -> Libp2pNetwork:
    return Libp2pNetwork(identity(number), listen=["/ip4/127.0.0.1/tcp/0"], limits=LIMITS)


async def record_of(us: Libp2pNetwork, peer: PeerId) -> bytes:
    with trio.fail_after(20):
        while (record := us.peer_record(peer)) is None:  # noqa: ASYNC110 - it comes when identify has run
            await trio.sleep(0.02)
    return record


@pytest.mark.slow
async def test_our_own_peers_records() -> None:
    async with network(1).running() as one, network(2).running() as two:
        assert one.peer_record(two.peer_id) is None
        await one.connect(two.peer_id, two.addresses)
        for us, other in ((one, two), (two, one)):
            found = open_peer_record(await record_of(us, other.peer_id))
            assert (found.peer, found.addresses) == (other.peer_id, other.addresses)
        await one.disconnect(two.peer_id)
        assert one.peer_record(two.peer_id) is None, "only of whom we are connected to"


@pytest.mark.slow
@needs_foreign
@pytest.mark.parametrize("kind", [GoPeer, JsPeer])
async def test_foreign_records(kind: type[GoPeer | JsPeer]) -> None:
    async with network(1).running() as us, kind.running() as other:
        await us.connect(other.peer_id, [other.address])
        found = open_peer_record(await record_of(us, other.peer_id))
        assert found.peer == other.peer_id
        assert other.address in found.addresses
        assert found.sequence > 0
