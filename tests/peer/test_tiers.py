"""A machine's tier: measured with others, kept over restarts, said aloud, and seen by the rest of the network."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from owm.dht._service import provider_key
from owm.directory.bandwidth import BandwidthService, warm_rate
from owm.hardware import Hardware, detect
from owm.identity import Identity
from owm.net import Link, MemoryHub, MemoryNetwork
from owm.peer import Peer
from owm.records import Accelerator
from owm.roles._presence import role_key
from tests.peer._peers import address, peer, running, until
from tests.tasks.world import TrioClock

SMALL = Hardware((Accelerator("card", 8192, "1"),), 16_384)
LARGE = Hardware((Accelerator("card", 24_576, "1"),), 65_536)


def link(mbps: float, latency: float = 0.005) -> MemoryHub:
    return MemoryHub(Random(1), Link(latency=latency, bandwidth=mbps * 1e6 / 8))


def tier_seen(by: Peer, of: Peer) -> str:
    known = by.directory.get(of.parts.identity.peer_id)
    return known.manifest.tier if known is not None else ""


async def test_a_worker_reaches_its_tier_and_keeps_it_over_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    """SRS-NODE-03, SRS-NODE-04."""
    net, path = link(100), tmp_path / "store.sqlite"
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"], bandwidth=True))
        via = [address(gateway)]
        worker = await peers.start(peer(net, "w", ["worker"], via, bandwidth=True, hardware=SMALL, store=path))
        assert worker.source.tier == "t0"
        await until(lambda: tier_seen(gateway, worker) == "t1", 120)
        await peers.kill(worker)
        again = await peers.start(peer(net, "w", ["worker"], via, bandwidth=True, hardware=SMALL, store=path))
        assert again.source.tier == "t1", "what was measured is remembered"
        assert again.bandwidth.mbps == pytest.approx(worker.bandwidth.mbps)
        me = again.parts.identity.peer_id
        await until(lambda: (seen := gateway.directory.get(me)) is not None and seen.manifest.nonce == again.nonce, 10)
        assert tier_seen(gateway, again) == "t1"


async def test_a_worker_that_was_alone_is_measured_soon_after_somebody_came(autojump_clock: MockClock) -> None:
    net = link(100)
    async with running() as peers:
        worker = await peers.start(peer(net, "worker", ["worker"], bandwidth=True, hardware=SMALL))
        with capture_logs() as said:
            await trio.sleep(1000)
        assert worker.bandwidth.mbps == 0
        assert len([line for line in said if "could not be measured" in line["event"]]) == 1
        await peers.start(peer(net, "gateway", ["gateway"], [address(worker)]))
        await until(lambda: worker.source.tier == "t1", 90)


async def test_a_refused_probe_is_tried_again_until_it_is_answered(autojump_clock: MockClock) -> None:
    """A worker whose store was lost comes back within the interval in which its only neighbour answers once."""
    net = link(100)
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        via = [address(gateway)]
        worker = await peers.start(peer(net, "w", ["worker"], via, bandwidth=True, hardware=SMALL))
        await until(lambda: worker.source.tier == "t1", 120)
        await peers.kill(worker)
        again = await peers.start(peer(net, "w", ["worker"], via, bandwidth=True, hardware=SMALL))
        await until(lambda: again.source.tier == "t1", 800)


async def test_the_role_is_found_under_its_new_tier_and_no_longer_provided_under_the_old(
    autojump_clock: MockClock,
) -> None:
    net = link(100)
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = peer(net, "worker", ["worker"], [address(gateway)], bandwidth=True, hardware=SMALL)
        worker = await peers.start(worker)
        shard = worker.parts.identity.public_key[-1]
        me = worker.parts.identity.peer_id

        async def found(tier: str) -> bool:
            providers = await gateway.dht.find_providers(role_key("worker", tier, shard))
            return me in [provider.peer for provider in providers]

        await trio.sleep(10)
        assert await found("t0") and not await found("t1")
        await until(lambda: worker.source.tier == "t1", 120)
        await trio.sleep(10)
        assert await found("t1")
        provided = worker.dht.core.provided  # what others hold of the old key expires
        assert provider_key(role_key("worker", "t1", shard)) in provided
        assert provider_key(role_key("worker", "t0", shard)) not in provided


async def test_the_tier_is_said_after_the_first_measurement_and_when_it_changes(autojump_clock: MockClock) -> None:
    net = link(100)
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        with capture_logs() as said:
            worker = peer(net, "worker", ["worker"], [address(gateway)], bandwidth=True, hardware=SMALL)
            worker = await peers.start(worker)
            await trio.sleep(5)
            assert not any("below Tier 1" in line["event"] for line in said), "nothing has been measured"
            await until(lambda: worker.source.tier == "t1", 120)
            await until(lambda: any(line.get("tier") == "t1" for line in said), 10)
            before = len([line for line in said if "tier of this machine" in line["event"]])
            for _ in range(3):
                await trio.sleep(700)
                await worker.tier_watch.measure()
            assert len([line for line in said if "tier of this machine" in line["event"]]) == before == 1


async def test_a_machine_that_no_bandwidth_can_lift_hears_so_at_the_start(autojump_clock: MockClock) -> None:
    with capture_logs() as said:
        async with running() as peers:
            await peers.start(peer(link(100), "worker", ["worker"], bandwidth=True))
    assert [line["log_level"] for line in said if "below Tier 1" in line["event"]] == ["warning"]


async def test_an_override_that_would_raise_the_tier_is_said_to_do_nothing(autojump_clock: MockClock) -> None:
    with capture_logs() as said:
        async with running() as peers:
            lone = peer(link(100), "worker", ["worker"], bandwidth=True, hardware=SMALL, tier_override="t3")
            await peers.start(lone)
    (warning,) = [line for line in said if "tier_override" in line["event"]]
    assert '"t3" is ignored' in warning["event"] and "t1 at most" in warning["event"]


async def test_the_start_of_a_probe_on_a_long_link_does_not_count(autojump_clock: MockClock) -> None:
    net = link(50, 0.008)
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        second = await peers.start(peer(net, "second", ["gateway"], [address(first)], bandwidth=True))
        await until(lambda: second.bandwidth.mbps > 0, 120)
        assert 49 < second.bandwidth.mbps < 51


async def test_a_slow_link_is_measured_too(autojump_clock: MockClock) -> None:
    net = link(1)
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        second = await peers.start(peer(net, "second", ["gateway"], [address(first)], bandwidth=True))
        await until(lambda: second.bandwidth.mbps > 0, 120)
        assert 0.8 < second.bandwidth.mbps < 1.1


async def test_no_number_of_newcomers_drains_a_peer(autojump_clock: MockClock) -> None:
    net, clock = link(100), TrioClock()
    async with AsyncExitStack() as stack:

        async def member(number: int) -> tuple[MemoryNetwork, BandwidthService]:
            network = net.network(Identity(number.to_bytes(32, "big")))
            service = BandwidthService(network, "/probe/1", clock, probe_bytes=1000)
            return await stack.enter_async_context(network.running()), service

        server, _ = await member(1)
        newcomers = [await member(number) for number in range(2, 52)]
        for network, _ in newcomers:
            await network.connect(server.peer_id, server.addresses)
        served = [await service.probe(server.peer_id) is not None for _, service in newcomers]
        assert served == [True] * 32 + [False] * 18
        await trio.sleep(3700)
        served = [await service.probe(server.peer_id) is not None for _, service in newcomers]
        assert sum(served) == 4


def test_only_the_second_half_counts() -> None:
    assert warm_rate([(0.0, 0), (1.0, 500_000), (1.1, 1_000_000)]) == pytest.approx(40)
    assert warm_rate([(0.0, 0), (0.5, 1_000_000)]) == pytest.approx(16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "ram_mib", "mbps", "tier"), [("8192", 16_384, 60, "t1"), ("24576", 65_536, 250, "t2")]
)
def test_from_the_vendors_tool_to_another_peers_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str, ram_mib: int, mbps: float, tier: str
) -> None:
    """SRS-NODE-03, SRS-NODE-04: probed, not claimed; only the memory is not this machine's own."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'Test Card, {card}, 1.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hardware = replace(trio.run(detect), ram_mib=ram_mib)

    async def main() -> None:
        net = link(mbps, 0.001)
        async with running() as peers:
            gateway = await peers.start(peer(net, "gateway", ["gateway"]))
            worker = peer(net, "worker", ["worker"], [address(gateway)], bandwidth=True, hardware=hardware)
            worker = await peers.start(worker)
            await until(lambda: tier_seen(gateway, worker) == tier, 120)
            seen = gateway.directory.get(worker.parts.identity.peer_id)
            assert seen is not None
            assert seen.manifest.accelerators == (Accelerator("Test Card", int(card), "1.0"),)
            assert seen.manifest.bandwidth_mbps > 50

    trio.run(main, clock=MockClock(autojump_threshold=0))
