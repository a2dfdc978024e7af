"""The DHT over a network in memory, in virtual time."""

from __future__ import annotations

import time

from owm.records import LogHead, sign_record
from tests.dht._nets import NETWORK, running_peers


def log_head(owner, size=1, sequence=None):
    return sign_record(owner, LogHead(sequence=sequence or int(time.time() * 1000), size=size, root=b"r" * 32), NETWORK)


async def test_thirty_peers_find_store_and_provide(autojump_clock):
    """SRS-NET: a peer joins through one other, and finds everybody and everything."""
    async with running_peers(30) as peers:
        for seeker, sought in ((3, 27), (29, 1), (15, 16)):
            found = await peers[seeker].dht.find_peer(peers[sought].identity.peer_id)
            assert found is not None
            assert found.addresses == peers[sought].network.addresses
        assert await peers[4].dht.provide(b"role:worker:t1:00") == 20
        providers = await peers[22].dht.find_providers(b"role:worker:t1:00")
        assert [p.peer for p in providers] == [peers[4].identity.peer_id]
        record = log_head(peers[5].identity)
        assert await peers[5].dht.put(record) >= 19
        got = await peers[25].dht.get(record.dht_key)
        assert got == record
        assert await peers[7].dht.get(b"/owm/log-head/nothing") is None
