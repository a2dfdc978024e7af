"""Peers that find each other, answer, lose their first peer, come late, and keep their word when they stop."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from owm.api.errors import NoWorker
from owm.directory.bandwidth import MAX_PROBE_BYTES
from owm.model.testing import StandInEngine
from owm.net import Link, MemoryHub, Stream
from owm.net.errors import StreamReset
from owm.peer import Peer
from owm.records import sign_record
from tests.peer._peers import address, ask, hub, peer, running, until


async def test_a_gateway_learns_of_workers_that_it_was_never_told_of(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["worker"]))
        for number in range(4):
            await peers.start(peer(net, f"worker{number}", ["worker"], [address(first)]))
        gateway = await peers.start(peer(net, "gateway", ["gateway"], [address(first)]))
        await until(lambda: len([p for p in gateway.directory.peers() if "worker" in p.manifest.roles]) == 5)
        text, worker = await ask(gateway)
        assert text.startswith("word") and worker


async def test_a_late_gateway_dispatches_within_five_seconds(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        for number in range(12):
            await peers.start(peer(net, f"worker{number}", ["worker"], [address(first)]))
        await until(lambda: len(first.directory.peers()) >= 12, 120)
        await trio.sleep(120)
        began = trio.current_time()
        late = await peers.start(peer(net, "late", ["gateway"], [address(first)]))
        text, _ = await ask_when_possible(late)
        assert text
        assert trio.current_time() - began < 5.0


@pytest.mark.slow
async def test_a_late_gateway_does_not_wait_for_peers_that_are_silent(autojump_clock: MockClock) -> None:
    """They take every question about the present manifests, and answer none."""

    async def hang(stream: Stream) -> None:
        while await stream.receive():
            pass

    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        silent = [await peers.start(peer(net, f"silent{n}", ["gateway"], [address(first)])) for n in range(3)]
        for number in range(6):
            await peers.start(peer(net, f"worker{number}", ["worker"], [address(first)]))
        await until(lambda: len(first.directory.peers()) >= 6, 120)
        await trio.sleep(120)
        for one in silent:
            one.parts.network.handle(one.parts.constitution.protocol("sync"), hang)
        began = trio.current_time()
        late = await peers.start(peer(net, "late", ["gateway"], [*map(address, silent), address(first)]))
        text, _ = await ask_when_possible(late)
        assert text
        assert trio.current_time() - began < 5.0


async def ask_when_possible(gateway: Peer) -> tuple[str, str]:
    while True:
        try:
            return await ask(gateway)
        except NoWorker:
            await trio.sleep(0.1)


async def test_the_first_peers_death_stops_nobody_and_newcomers_join_through_a_remembered_peer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    net = hub()
    cache = tmp_path / "peers.json"
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["worker"]))
        gateway = await peers.start(peer(net, "gateway", ["gateway"], [address(first)]))
        for number in range(4):
            await peers.start(peer(net, f"worker{number}", ["worker"], [address(first)]))
        once = await peers.start(peer(net, "newcomer", ["worker"], [address(first)], cache=cache))
        await until(lambda: len(gateway.directory.peers()) >= 6)
        await trio.sleep(120)
        await peers.kill(once)  # it was here once, and remembers whom it met
        assert cache.exists()
        await peers.kill(first)
        _, worker = await ask(gateway)
        assert worker != str(first.parts.identity.peer_id)
        again = await peers.start(peer(net, "newcomer", ["worker"], [address(first)], cache=cache))
        await until(lambda: again.joiner.status.joined and len(again.parts.network.connections()) >= 2, 120)
        me = again.parts.identity.peer_id
        await until(lambda: any(p.id == me for p in gateway.directory.peers()), 120)


async def test_a_peer_with_no_way_in_says_what_failed_and_gets_in_once_it_can(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        lonely = await peers.start(peer(net, "lonely", ["worker"], ["/ip4/10.200.0.1/tcp/4001"]))
        await trio.sleep(30)
        assert not lonely.joiner.status.joined
        assert "/ip4/10.200.0.1/tcp/4001" in lonely.joiner.status.summary
        assert lonely.health().status == "degraded"
        friend = await peers.start(peer(net, "friend", ["worker"], [address(lonely)]))
        await until(lambda: lonely.joiner.status.joined and friend.joiner.status.joined, 120)
        assert lonely.joiner.status.summary == "joined"
        assert lonely.health().status == "ok"


async def test_a_peer_that_lost_its_last_connection_is_back_at_once(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["worker"]))
        second = await peers.start(peer(net, "second", ["worker"], [address(first)]))
        await until(lambda: second.joiner.status.joined)
        await trio.sleep(30)  # or the dialler would think that the connection never held
        cut = trio.current_time()
        await first.parts.network.disconnect(second.parts.network.peer_id)
        await until(lambda: any(c.opened > cut for c in second.parts.network.connections()), 3.0)


async def test_a_manifest_that_nobody_took_is_sent_again_soon(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        worker = await peers.start(peer(net, "alone", ["worker"]))
        await trio.sleep(20)  # its first manifests had nobody to go to
        gateway = await peers.start(peer(net, "gateway", ["gateway"], [address(worker)]))
        assert await until(lambda: len(gateway.directory.peers()) == 1, 60) < 8.0


async def test_the_first_peer_of_a_network_is_not_waiting_for_anybody(autojump_clock: MockClock) -> None:
    async with running() as peers:
        first = await peers.start(peer(hub(), "first", ["gateway", "worker"]))
        await first.presence.wait_published()
        assert first.joiner.status.summary.startswith("alone")
        assert first.health().status == "ok"


async def test_a_stopping_worker_completes_what_it_runs(autojump_clock: MockClock) -> None:
    """SRS-NODE-09."""
    net = hub()
    engine = StandInEngine(tokens=6, pace=0.5)
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        leave = trio.Event()
        left = trio.Event()
        worker = peer(net, "worker", ["worker"], [address(gateway)], engine=engine)

        async def serve() -> None:
            async with worker.running():
                await leave.wait()
            left.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await until(lambda: len(gateway.directory.peers()) == 1)
            answers: list[str] = []

            async def client() -> None:
                answers.append((await ask(gateway))[0])

            nursery.start_soon(client)
            await until(lambda: engine.statistics().busy == 1)
            leave.set()
            await left.wait()
            assert engine.generated == 6 and engine.cancelled == 0
            await until(lambda: len(answers) == 1, 5)
            assert answers[0].count("word") == 6


async def test_a_worker_that_vanished_is_not_asked_once_its_lease_is_over(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = await peers.start(peer(net, "worker", ["worker"], [address(gateway)]))
        await until(lambda: len(gateway.directory.peers()) == 1)
        await peers.kill(worker)
        took = await until(lambda: not gateway.directory.peers(), 300)
        assert took <= 200


async def test_two_machines_with_one_key_both_learn_of_it(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        one = await peers.start(peer(net, "twin", ["gateway"], [address(first)]))
        await until(lambda: one.joiner.status.joined)
        # The other machine's manifest: the same key, a nonce of its own, a later number.
        sequence = int(one.parts.clock.time() * 1000) + 5000
        twin = msgspec.structs.replace(one.source.manifest(sequence, ("worker",)), nonce=b"o" * 16)
        await first.manifests.publish(sign_record(one.parts.identity, twin, one.source.constitution.id))
        await until(lambda: one.directory.statistics().doppelgangers == 1, 60)


async def test_bandwidth_is_measured_with_others_and_shown(autojump_clock: MockClock) -> None:
    net = MemoryHub(Random(1), Link(latency=0.005, bandwidth=12_500_000))  # 100 Mbit/s
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["worker"], bandwidth=True))
        second = await peers.start(peer(net, "second", ["worker"], [address(first)], bandwidth=True))
        await until(lambda: second.bandwidth.mbps > 0, 120)
        assert 50 < second.bandwidth.mbps < 110


async def test_a_prober_gets_one_measurement_per_interval_and_no_giant_ones(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        second = await peers.start(peer(net, "second", ["gateway"], [address(first)]))
        await until(lambda: second.joiner.status.joined)
        served, me = first.parts.identity.peer_id, second.parts
        assert await second.bandwidth.probe(served) is not None
        assert await second.bandwidth.probe(served) is None  # too soon
        await trio.sleep(700)
        stream = await me.network.open_stream(served, me.constitution.protocol("bandwidth"), bulk=True)
        await stream.send((MAX_PROBE_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(StreamReset):
            while await stream.receive(65536):
                pass
        assert first.parts.network.statistics().penalties == {"bandwidth probe too large": 1}


async def test_no_peer_of_a_devnet_holds_more_than_twelve_connections(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        first = await peers.start(peer(net, "first", ["gateway"]))
        started = [first]
        for number in range(19):
            started.append(await peers.start(peer(net, f"worker{number}", ["worker"], [address(first)])))
        most = 0
        for _ in range(60):
            await trio.sleep(1)
            most = max(most, *(len(one.parts.network.connections()) for one in started))
        assert most <= 12
        await until(lambda: len(first.directory.peers()) == 19, 120)
