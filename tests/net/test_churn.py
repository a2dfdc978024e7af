"""Peers that come and go thousands of times leave nothing behind at the one that stays."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import psutil
import pytest
import structlog
import trio
from libp2p.identity.update import _safe_parse_multiaddr_cached
from trio._core._run import GLOBAL_RUN_CONTEXT
from trio.testing import MockClock

from owm.net import Call, Calls, Link, MemoryHub, Network, NetworkLimits
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, echo, eventually, identity
from tests.net.visitors import visit

LIMITS = NetworkLimits(
    exempt_local=True,
    max_connections=300,
    max_inbound=300,
    high_water=280,
    low_water=260,
    reserved_protected=0,
    max_handshakes=300,
)
PROTOCOL = "/owm/test/churn/1"

pytestmark = pytest.mark.slow


@dataclass
class Footprint:
    """What the process holds while nobody is connected."""

    objects: int = field(default_factory=lambda: len(gc.get_objects()))
    tasks: int = field(default_factory=lambda: trio.lowlevel.current_statistics().tasks_living)
    rss: int = field(default_factory=lambda: psutil.Process().memory_info().rss)
    files: int = field(default_factory=lambda: psutil.Process().num_fds())


def forget_what_is_bounded() -> None:
    """Two bounded memories of others hide what leaks: deadlines that trio drops by the thousand, addresses parsed."""
    GLOBAL_RUN_CONTEXT.runner.deadlines._prune()
    _safe_parse_multiaddr_cached.cache_clear()
    gc.collect()


class Churn:
    """Visitors that connect to ``home``, make a call and leave, again and again."""

    def __init__(self, home: Network, make: Callable[[int], Network], at_once: int) -> None:
        self.home = home
        self.visits = 0
        self._make = make
        self._at_once = trio.CapacityLimiter(at_once)

    async def wave(self, peers: int, times: int) -> Footprint:
        async with trio.open_nursery() as nursery:
            for number in range(10, 10 + peers):
                nursery.start_soon(self._visit, number, times)
        await eventually(lambda: not self.home.connections())
        await trio.sleep(0.5)
        forget_what_is_bounded()
        return Footprint()

    async def _visit(self, number: int, times: int) -> None:
        for _ in range(times):
            async with self._at_once:
                network = self._make(number)
                calls = Calls(network, PROTOCOL)
                async with network.running(), calls.running():
                    await network.connect(self.home.peer_id, self.home.addresses)
                    assert await calls.request(self.home.peer_id, b"hello") == b"hello"
                    self.visits += 1
            await trio.sleep(2)


async def answer(call: Call) -> None:
    await call.reply(call.request)


def assert_clean(home: Network, before: Footprint, after: Footprint, visits: int) -> None:
    statistics = home.statistics()
    assert (statistics.connections, statistics.inbound, statistics.streams, statistics.refused) == (0, 0, 0, 0)
    assert after.tasks == before.tasks, "tasks leak"
    assert after.files <= before.files, "sockets leak"
    per_visit = (after.objects - before.objects) / visits
    assert per_visit < 1, f"{per_visit:.1f} objects leak per visit"
    print(f"RSS slope: {(after.rss - before.rss) / visits:.0f} bytes a visit over {visits} visits")


async def test_five_thousand_visits_in_memory_leave_nothing(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    home = hub.network(identity(1), limits=LIMITS)
    server = Calls(home, PROTOCOL)
    async with home.running(), server.running():
        server.serve(answer)
        churn = Churn(home, lambda number: hub.network(identity(number)), at_once=250)
        before = await churn.wave(250, 2)
        after = await churn.wave(250, 18)
        assert churn.visits == 250 * 20
        assert_clean(home, before, after, 250 * 18)


async def test_visits_over_tcp_leave_nothing() -> None:
    home = Libp2pNetwork(identity(1), limits=LIMITS)
    server = Calls(home, PROTOCOL)
    async with home.running(), server.running():
        server.serve(answer)
        churn = Churn(home, lambda number: Libp2pNetwork(identity(number), limits=LIMITS), at_once=10)
        before = await churn.wave(20, 2)
        after = await churn.wave(20, 6)
        assert churn.visits == 20 * 8
        assert_clean(home, before, after, 20 * 6)


@pytest.mark.timeout(600)
def test_five_thousand_visits_over_tcp_by_ever_new_peers_leave_nothing() -> None:
    """In a process of its own: what other tests left behind would be in its memory too."""
    code = f"import trio; from {__name__} import five_thousand_visits; trio.run(five_thousand_visits)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


async def five_thousand_visits() -> None:
    """As many as 250 peers that connect and leave 20 times each. The first 2000 fill what is bounded and reused: the
    allocator's arenas, quotas until they are swept and the like, 5 MB once and not per visit."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    numbers = iter(range(1000, 10_000))

    async def wave(visits: int) -> Footprint:
        at_once = trio.CapacityLimiter(25)

        async def one(number: int) -> None:
            async with at_once:
                await visit(home, identity(number))

        async with trio.open_nursery() as nursery:
            for _ in range(visits):
                nursery.start_soon(one, next(numbers))
        await eventually(lambda: not home.connections())
        await trio.sleep(0.5)
        forget_what_is_bounded()
        return Footprint()

    async with Libp2pNetwork(identity(1), limits=LIMITS).running() as home:
        home.handle(ECHO, echo)
        for _ in range(2):
            before = await wave(1000)
        for _ in range(3):
            after = await wave(1000)
        assert_clean(home, before, after, 3000)
        assert (after.rss - before.rss) / 3000 < 500, "bytes of every connection stay"
        assert len(home._library._host.get_peerstore().peer_data_map) <= 33
        assert home.statistics().penalties == {}
