"""Attacks on connections: crowds of identities, reconnect loops, skewed clocks, one-way partitions."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.clock import ManualClock
from owm.identity import Identity
from owm.net import Call, Calls, Link, MemoryHub, NetworkLimits, PeerConnected, PeerDisconnected
from owm.net.errors import DialFailed, NetworkError, NotConnected, RequestTimeout
from owm.records import CapabilityManifest, ReplayGuard, SignedRecord, open_record, sign_record
from owm.records.errors import FromTheFuture, ReplayedRecord, StaleRecord
from owm.store import Store
from tests.net.conformance import eventually, identity

HOUR = 3600.0
NETWORK = "owm-test"


async def echo(call: Call) -> None:
    await call.reply(call.request)


@pytest.mark.attack("T3")
async def test_a_crowd_of_ids_from_one_host_takes_a_subnets_share_and_no_more(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    limits = NetworkLimits(max_per_subnet=8)
    async with trio.open_nursery() as nursery, hub.network(identity(1), limits=limits).running() as victim:

        async def join(number: int, host: str) -> None:
            async with hub.network(identity(number), address=f"/ip4/{host}/tcp/{number}").running() as peer:
                try:
                    await peer.connect(victim.peer_id, victim.addresses)
                except DialFailed:
                    return
                await trio.sleep_forever()

        for number in range(100, 600):
            nursery.start_soon(join, number, f"203.0.{number % 250}.7")
        await trio.sleep(5)
        assert len(victim.connections()) == 8
        assert victim.statistics().refused >= 492
        for number in range(10, 40):
            nursery.start_soon(join, number, f"{number}.1.0.1")
        await trio.sleep(5)
        honest = {identity(number).peer_id for number in range(10, 40)}
        assert honest <= {connection.peer for connection in victim.connections()}
        nursery.cancel_scope.cancel()


@pytest.mark.attack("T3")
async def test_an_attacker_with_many_subnets_does_not_displace_protected_peers(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    limits = NetworkLimits(
        max_connections=60, max_inbound=50, high_water=44, low_water=30, reserved_protected=10, grace_period=1.0
    )
    async with trio.open_nursery() as nursery, hub.network(identity(1), limits=limits).running() as victim:

        async def hold(number: int) -> None:
            address = f"/ip4/{number % 200 + 1}.{number // 200}.0.1/tcp/1"
            async with hub.network(identity(number), address=address).running() as peer:
                while True:
                    with contextlib.suppress(NetworkError):
                        await peer.connect(victim.peer_id, victim.addresses)
                    await trio.sleep(2)

        friends = [identity(number).peer_id for number in range(10, 14)]
        for friend in friends:
            victim.protect(friend, "treasury")
        for number in range(10, 12):
            nursery.start_soon(hold, number)
        await trio.sleep(3)
        began = {c.peer: c.opened for c in victim.connections()}
        assert set(began) == set(friends[:2])
        most = 0
        for number in range(1000, 1400):
            nursery.start_soon(hold, number)
        for _ in range(60):
            await trio.sleep(2)
            most = max(most, len(victim.connections()))
        assert most <= 60 - 10 + 2
        opened = {c.peer: c.opened for c in victim.connections()}
        assert all(opened[friend] == began[friend] for friend in friends[:2]), "never even interrupted"
        for number in range(12, 14):  # a protected peer that comes late still gets in
            nursery.start_soon(hold, number)
        await trio.sleep(10)
        assert set(friends) <= {c.peer for c in victim.connections()}
        nursery.cancel_scope.cancel()


@pytest.mark.attack("T9")
async def test_a_flapping_peer_is_dialled_ever_more_rarely(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    victim, flapper = hub.network(identity(1)), hub.network(identity(2))
    async with trio.open_nursery() as nursery, victim.running(), flapper.running():

        async def flap() -> None:
            async with flapper.events() as events:
                async for event in events:
                    if isinstance(event, PeerConnected):
                        await flapper.disconnect(event.peer)

        nursery.start_soon(flap)
        attempts = 0
        began = trio.current_time()
        while trio.current_time() - began < HOUR:  # an eager caller, four times a second for an hour
            attempts += 1
            with contextlib.suppress(DialFailed):
                await victim.connect(flapper.peer_id, flapper.addresses)
            await trio.sleep(0.25)
        dials = victim.statistics().dials
        assert attempts > 10_000
        assert 8 <= dials <= 20, "0.5 s doubling to 600 s: about 16 in an hour"
        nursery.cancel_scope.cancel()


@pytest.mark.attack("T9")
async def test_a_peer_that_reconnects_for_ever_is_turned_away_and_nothing_is_pushed_at_it(
    autojump_clock: MockClock,
) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    victim, calls_served = hub.network(identity(1)), 0

    async def serve(call: Call) -> None:
        nonlocal calls_served
        calls_served += 1
        await call.reply(b"ok")

    victim_calls = Calls(victim, "/calls")
    async with victim.running(), victim_calls.running(), hub.network(identity(3)).running() as honest:
        victim_calls.serve(serve)
        honest_calls = Calls(honest, "/calls")
        await honest.connect(victim.peer_id, victim.addresses)
        events = victim.events()
        before = victim.statistics().bytes_out
        for _ in range(2000):  # a modified peer: each visit is a fresh process without any back-off of its own
            async with hub.network(identity(2), address="/ip4/203.0.1.1/tcp/1").running() as attacker:
                with contextlib.suppress(DialFailed):
                    await attacker.connect(victim.peer_id, victim.addresses)
                await trio.sleep(0.04)
        accepted = 0
        while True:
            try:
                accepted += isinstance(events.receive_nowait(), PeerConnected)
            except trio.WouldBlock:
                break
        seconds = 2000 * 0.05
        assert accepted <= 30 + 0.5 * seconds + 2
        assert victim.statistics().refused >= 1900
        assert victim.statistics().bytes_out - before == 0, "a visit costs us no traffic of ours"
        async with honest_calls.running():
            assert await honest_calls.request(victim.peer_id, b"") == b"ok"


def manifest(sequence: int) -> CapabilityManifest:
    return CapabilityManifest(
        sequence=sequence, roles=("worker",), tier="t1", addresses=("/ip4/10.0.0.1/tcp/1",), nonce=bytes(16)
    )


@pytest.mark.attack("T13")
@pytest.mark.parametrize("skew", [-HOUR, HOUR])
async def test_records_of_a_peer_whose_clock_is_an_hour_off_are_taken_and_renewed(
    skew: float, autojump_clock: MockClock, tmp_path: Path
) -> None:
    right, wrong = ManualClock(), ManualClock(skew=skew)
    issuer = Identity(b"i" * 32)
    guard = ReplayGuard()
    opened: list[SignedRecord] = []
    hub = MemoryHub(Random(1), Link(latency=0.05))
    sender, receiver = hub.network(issuer), hub.network(identity(2))
    send, take = Calls(sender, "/records"), Calls(receiver, "/records")

    async def admit(call: Call) -> None:
        record = open_record(call.request, NETWORK, right.time(), issuer=call.peer)
        guard.admit(record)
        opened.append(record)
        await call.reply(b"taken")

    async with (
        Store(tmp_path / "peer.db").running() as store,
        sender.running(),
        receiver.running(),
        send.running(),
        take.running(),
    ):
        take.serve(admit)
        await sender.connect(receiver.peer_id, receiver.addresses)
        for _ in range(10):
            record = manifest(await store.next_sequence("manifest", wrong.time()))
            envelope = sign_record(issuer, record, NETWORK).envelope
            assert await send.request(receiver.peer_id, envelope, timeout=5) == b"taken"
            right.advance(60)
            wrong.advance(60)
        assert len(opened) == 10
        # Its clock is put right, backwards or forwards: its records still replace its older ones.
        wrong.skew = 0.0
        record = manifest(await store.next_sequence("manifest", wrong.time()))
        guard.admit(open_record(sign_record(issuer, record, NETWORK).envelope, NETWORK, right.time()))
    with pytest.raises(ReplayedRecord):
        guard.admit(opened[0])


@pytest.mark.attack("T13")
@pytest.mark.parametrize(("skew", "error"), [(-3 * HOUR, StaleRecord), (3 * HOUR, FromTheFuture)])
def test_a_clock_that_is_further_off_is_named_as_the_reason(skew: float, error: type[Exception]) -> None:
    right, wrong = ManualClock(), ManualClock(skew=skew)
    signed = sign_record(Identity(b"i" * 32), manifest(int(wrong.time() * 1000)), NETWORK)
    with pytest.raises(error):
        open_record(signed.envelope, NETWORK, right.time())


@pytest.mark.attack("T14")
async def test_a_one_way_partition_is_no_connection_for_either_side_and_heals(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.02))
    a, b, c = (hub.network(identity(number)) for number in (1, 2, 3))
    calls = {network: Calls(network, "/calls") for network in (a, b, c)}
    async with trio.open_nursery() as nursery, a.running(), b.running(), c.running():
        for each in calls.values():
            await nursery.start(_run, each)
            each.serve(echo)
        for x, y in ((a, b), (b, c), (c, a)):
            await x.connect(y.peer_id, y.addresses)
        events = a.events()
        assert {(await events.receive()).peer, (await events.receive()).peer} == {b.peer_id, c.peer_id}
        assert await calls[a].request(b.peer_id, b"before") == b"before"

        hub.partition({a.peer_id}, {b.peer_id}, one_way=True)
        cut = trio.current_time()
        with pytest.raises(RequestTimeout):
            await calls[a].request(b.peer_id, b"lost on the way", timeout=5)
        with pytest.raises(RequestTimeout):  # the question arrives, the answer cannot
            await calls[b].request(a.peer_id, b"heard, not answered", timeout=5)
        with trio.fail_after(40):
            event = await events.receive()
        assert isinstance(event, PeerDisconnected) and event.peer == b.peer_id
        await eventually(lambda: not b.is_connected(a.peer_id))
        assert trio.current_time() - cut <= 31
        # Discovered is not connected: the address is known, through c for instance, and neither side claims a link.
        for here, there in ((a, b), (b, a)):
            with pytest.raises(NotConnected):
                await calls[here].request(there.peer_id, b"")
            with pytest.raises(DialFailed) as caught:
                await here.connect(there.peer_id, there.addresses)
            assert "no answer" in caught.value.reasons[there.addresses[0]]
            assert [connection.peer for connection in here.connections()] == [c.peer_id]
            assert await calls[here].request(c.peer_id, b"the others answer") == b"the others answer"
        assert a.statistics().streams + b.statistics().streams <= 4, "no stream of the lost connection is left"

        hub.heal()
        with trio.fail_after(10):  # whoever tries first after its back-off merges the two sides
            while not a.is_connected(b.peer_id):
                try:
                    await a.connect(b.peer_id, b.addresses)
                except DialFailed:
                    await trio.sleep(0.25)
        assert await calls[a].request(b.peer_id, b"after") == b"after"
        assert await calls[b].request(a.peer_id, b"after") == b"after"
        nursery.cancel_scope.cancel()


async def _run(calls: Calls, task_status: trio.TaskStatus[None]) -> None:
    async with calls.running():
        task_status.started()
        await trio.sleep_forever()
