"""Two machines with one identity key: both are told, once, and neither throws the other out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from owm.net import Calls, PeerConnected, PeerDisconnected
from owm.net.errors import RemoteError
from owm.peer import Peer
from owm.roles._local import LocalViews
from tests.peer._peers import address, ask, hub, peer, running, until

TOLD = "another process runs with this identity"
MINUTES = 10


def told(logs: list[dict[str, object]]) -> int:
    return sum(TOLD in str(entry["event"]) for entry in logs)


def sees_a_twin(one: Peer) -> bool:
    return bool(LocalViews(one)._status({})["doppelgangers"])


@pytest.mark.slow
@pytest.mark.attack("T8")
@pytest.mark.parametrize("roles", [("worker",), ("gateway",), ()])
async def test_both_are_told_once_and_nobody_flaps(roles: tuple[str, ...], autojump_clock: MockClock) -> None:
    net = hub()
    events: Counter[type] = Counter()

    async def count(of: Peer) -> None:
        async for event in of.parts.network.events():
            events[type(event)] += 1

    with capture_logs() as logs:
        async with running() as peers, trio.open_nursery() as nursery:
            first = await peers.start(peer(net, "first", ["gateway"]))
            via = [address(first)]
            others = [await peers.start(peer(net, f"w{number}", ["worker"], via)) for number in range(3)]
            one = await peers.start(peer(net, "key", roles, via))
            await trio.sleep(20)
            other = await peers.start(peer(net, "key", roles, via, secrets="another machine's"))
            assert one.parts.identity.peer_id == other.parts.identity.peer_id and one.nonce != other.nonce
            assert await until(lambda: sees_a_twin(one) and sees_a_twin(other), 180) < 150
            assert told(logs) == 2
            for each in (first, *others, one, other):
                nursery.start_soon(count, each)
            await trio.sleep(1)
            events.clear()
            dials = sum(each.parts.network.statistics().dials for each in (first, *others, one, other))
            await trio.sleep(60 * MINUTES)
            dials = sum(each.parts.network.statistics().dials for each in (first, *others, one, other)) - dials
            nursery.cancel_scope.cancel()
        assert told(logs) == 2  # once each, however long it lasts
    assert events[PeerConnected] <= MINUTES and events[PeerDisconnected] <= MINUTES
    assert dials <= 6 * MINUTES
    assert not any(sees_a_twin(each) for each in (first, *others))


@pytest.mark.slow
async def test_the_rest_of_the_network_goes_on_meanwhile(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        via = [address(gateway)]
        await peers.start(peer(net, "honest", ["worker"], via))
        for secrets in ("one", "two"):
            await peers.start(peer(net, "key", ["worker"], via, secrets=secrets))
        await until(lambda: len(gateway.directory.peers()) == 2)
        for number in range(20):
            assert (await ask(gateway, f"question {number}"))[0]
            await trio.sleep(10)


@pytest.mark.slow
async def test_a_restart_is_no_twin(autojump_clock: MockClock, tmp_path: Path) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = peer(net, "worker", ["worker"], [address(gateway)], store=tmp_path / "peer.db")
        await peers.start(worker)
        await trio.sleep(70)
        await peers.kill(worker)
        again = peer(net, "worker", ["worker"], [address(gateway)], store=tmp_path / "peer.db", secrets="later")
        await peers.start(again)
        await trio.sleep(300)
        assert not sees_a_twin(again) and again.directory.statistics().doppelgangers == 0


async def test_nobody_learns_of_anothers_twin_and_nonsense_is_refused(autojump_clock: MockClock) -> None:
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = await peers.start(peer(net, "worker", ["worker"], [address(gateway)]))
        await until(lambda: worker.presence.latest is not None)
        await trio.sleep(2)
        stranger = peer(net, "stranger", []).parts.network
        calls = Calls(stranger, gateway.parts.constitution.protocol("twin"))
        theirs = worker.presence.latest
        assert theirs is not None
        async with stranger.running(), calls.running():
            await stranger.connect(gateway.parts.identity.peer_id, [address(gateway)])
            for request in (theirs.envelope, b"", b"nonsense", bytes(16_000)):
                with pytest.raises(RemoteError, match="not a manifest of yours"):
                    await calls.request(gateway.parts.identity.peer_id, request)
