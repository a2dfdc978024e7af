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
        most: list[int] = []
        with trio.fail_after(120):  # the first peer has twelve places, so newcomers take turns at its door
            while True:
                rows = await describe(devnet)
                most.append(max(row["connections"] or 0 for row in rows))
                if all(row["connections"] for row in rows) and len(most) >= 10:
                    break
                await trio.sleep(1)  # other processes' connections are sampled over time
        assert len(rows) == PEERS
        assert max(most) <= MOST_CONNECTIONS, most
    finally:
        await devnet.stop()
