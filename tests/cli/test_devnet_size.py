"""A devnet of thirty real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from owm.cli._devnet import Devnet, Member, plan
from owm.cli._devnet_view import describe

PEERS = 30
MOST_CONNECTIONS = 12


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_at_thirty_peers_none_holds_more_than_twelve_connections(tmp_path: Path) -> None:
    """All join through the first one's address alone, and the gateway still learns of the only worker."""
    members = plan(tmp_path, workers=1, gateways=1)
    members += [Member(f"peer-{n}", (), tmp_path / f"peer-{n}") for n in range(PEERS - len(members))]
    devnet = Devnet(members)
    try:
        await devnet.start()
        await devnet.wait_usable()
        most = []
        for _ in range(10):
            rows = await describe(devnet)
            assert [row["name"] for row in rows if not row["connections"]] == []
            most.append(max(row["connections"] for row in rows))
            await trio.sleep(1)  # other processes' connections are sampled over time
        assert len(rows) == PEERS
        # A connection over the cap may exist while the one that it displaces is being closed, never for long.
        assert max(most[5:]) <= MOST_CONNECTIONS, most
    finally:
        await devnet.stop()
