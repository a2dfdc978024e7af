"""What a running peer holds against others, and what it spends on them at most: owm peers, owm status, /metrics."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trio

from owm.cli._local import PeerFile, read_peer_file
from owm.identity import PeerId
from tests.cli._run import Cli
from tests.net.conformance import identity
from tests.net.strangers import DATA, PING, SYN, Stranger, frame

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@asynccontextmanager
async def running_peer(folder: Path) -> AsyncIterator[PeerFile]:
    command = [sys.executable, "-m", "owm", "peer", "--data-dir", str(folder), "--roles", "gateway"]
    command += ["--network", "devnet", "--listen", "127.0.0.1:0", "--api-port", "0", "--health-port", "0"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command))
        with trio.fail_after(60):
            while (found := read_peer_file(folder)) is None:  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.1)
        yield found
        process.send_signal(signal.SIGTERM)


async def misbehave(peer: PeerFile, number: int, words: bytes, times: int) -> None:
    network = SimpleNamespace(addresses=peer.addresses, peer_id=PeerId.parse(peer.peer_id))
    for _ in range(times):
        with suppress(trio.BrokenResourceError):
            async with Stranger.connected(identity(number), network) as stranger:  # type: ignore[arg-type]
                await stranger.send(words)
                assert await stranger.is_cut(10)


async def test_who_was_penalised_or_banned_is_seen_with_the_limits(tmp_path: Path, owm: Cli) -> None:
    async with running_peer(tmp_path) as peer:
        flood = b"".join(frame(PING, SYN, 0, n) for n in range(1000))
        await misbehave(peer, 666, flood, 4)  # 15 of 100 each time
        await misbehave(peer, 667, frame(DATA, SYN, 1, 0xFFFFFFFF), 1)
        folder = ("--data-dir", str(tmp_path))
        rows = {row["peer_id"]: row for row in owm("peers", "--json", *folder).json}
        banned, mild = (rows[str(identity(number).peer_id)] for number in (666, 667))
        assert banned["state"] == "banned" and banned["score"] < -50
        assert mild["state"] == "penalised" and -11 < mild["score"] < -9
        table = owm("peers", *folder).out
        assert "banned" in table and "penalised" in table
        status = owm("status", "--json", *folder).json
        assert (status["peers_penalised"], status["peers_banned"]) == (2, 1)
        assert status["limits"]["max_connections"] == 12 and status["limits"]["max_per_subnet"] == 8
        assert "limits.max_streams_per_peer" in owm("status", *folder).out.replace(" ", "_")
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"{peer.health_url}/metrics")).text
        lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("owm_network"))
        given = 'owm_network_penalties_given{level="%s",reason="%s"}'
        assert float(lines[given % ("low_tolerance", "transport protocol violation")]) >= 2
        assert float(lines[given % ("mid_tolerance", "ping flood")]) >= 1
        assert float(lines["owm_network_banned"]) == 1
        assert float(lines["owm_network_penalised"]) == 2
        assert float(lines["owm_network_limit_max_connections"]) == 12
        assert "owm_network_streams_refused" in lines and "owm_network_refused" in lines
