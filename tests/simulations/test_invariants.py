"""Every invariant holds in a small run, and is broken once its defence is disabled or its links made impossible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from owm.config import load_constitution
from owm.dht._core import KademliaCore
from owm.dht._core_server import Server
from owm.dht._core_types import DhtParams, key_of
from owm.directory import Directory
from owm.errors import ConfigError
from simulations import _full, _happenings, _world
from simulations._judge import BOUNDS
from simulations._node import validate
from simulations._scenario import Invariants, load_scenario
from simulations._sweep import run_seed

pytestmark = pytest.mark.slow

Break = Callable[[pytest.MonkeyPatch], None]

CALM = """
nodes = 30
duration = 60.0
[workload]
lookups = 20
stores = 10
reads = 20
messages = 10
"""
SYBIL = """
nodes = 80
duration = 80.0
gossip = false
[workload]
stores = 4
reads = 30
[adversary]
kind = "sybil"
count = 40
near = 30
"""
CLOCKS = """
nodes = 30
duration = 60.0
gossip = false
[population]
clock_skew = 3600.0
far_clocks = 0.4
far_skew = 12600.0
record_max_age = 21600.0
[workload]
stores = 4
stale_stores = 10
far_stores = 10
"""
CUT = """
nodes = 24
duration = 500.0
[workload]
warm_up = 20.0
lookups = 200
stores = 1200
settle = 100.0
[[events]]
at = 30.0
kind = "partition"
[[events]]
at = 330.0
kind = "heal"
"""
NAT = """
nodes = 40
duration = 30.0
dht = false
[population]
[population.nat]
cone = 0.8
[workload]
dials = 400
"""
FULL = """
fidelity = "full"
signatures = "real"
nodes = 6
duration = 100.0
[peers]
gateways = 2
late_gateways = 1
[population]
join_interval = 0.2
[workload]
warm_up = 30.0
queries = 5
[links]
latency_ms = 20.0
"""


CHURN = """
nodes = 40
duration = 240.0
gossip = false
[workload]
lookups = 600
stores = 800
[churn]
kind = "exponential"
mean_session = 240.0
mean_absence = 120.0
"""
RESTARTS = """
nodes = 30
duration = 60.0
gossip = false
[[events]]
at = 20.0
kind = "restart"
share = 0.2
"""


def linked(latency_ms: float) -> Break:
    """Links so slow that it cannot hold."""

    def slow(patch: pytest.MonkeyPatch) -> None:
        real = _world.Links
        patch.setattr(
            _world, "Links", lambda model, *rest: real(msgspec.structs.replace(model, latency_ms=latency_ms), *rest)
        )

    return slow


def with_params(**changed: float) -> Break:
    """Other parameters of the DHT than those that peers have."""

    def change(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(_world, "DhtParams", lambda **given: DhtParams(**given, **changed))

    return change


def without_shortcuts(patch: pytest.MonkeyPatch) -> None:
    """Everybody knows few and names but one peer, that which brings the asker least."""

    def closer(self: Server, peer: bytes, key: bytes, **_: bool) -> tuple[object, ...]:
        target = key_of(key)
        nearer = [c for c in self._table.nearest(target, 100) if c.key ^ target < self.contact.key ^ target]
        return tuple(nearer[-1:])

    patch.setattr(Server, "_closer", closer)
    with_params(k=2, alpha=1)(patch)


def without_regions(patch: pytest.MonkeyPatch) -> None:
    """The attacked key is looked for like any other."""
    for name in ("start_put", "start_get"):
        real = getattr(KademliaCore, name)
        patch.setattr(KademliaCore, name, lambda *args, _real=real, **more: _real(*args, **(more | {"region": False})))


def without_merging(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KademliaCore, "start_merge", lambda self, now: None)


def without_tolerance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_world, "TOLERANCE", 1e9)


def without_ageing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_world, "validate", lambda now, tolerance, max_age: validate(now, tolerance, 0.0))


def without_punching(patch: pytest.MonkeyPatch) -> None:
    real = _world.World.can_dial
    patch.setattr(_world.World, "can_dial", lambda self, a, b: a.nat != "cone" and b.nat != "cone" and real(self, a, b))


def without_a_cache(patch: pytest.MonkeyPatch) -> None:
    """Who restarts knows nobody, and does not look at who asks it something."""
    patch.setattr(_happenings.Happenings, "_restart", lambda self, node, cache: self._world.come_back(node, []))
    patch.setattr(KademliaCore, "_greeted", lambda *args: None)


def without_workers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "eligible", lambda *args, **more: [])


def slow_hub(patch: pytest.MonkeyPatch) -> None:
    """Forty seconds from peer to peer."""
    real = _full.Link
    patch.setattr(_full, "Link", lambda latency, jitter, loss: real(latency=40.0, jitter=0.0, loss=0.0))


def with_chatter(patch: pytest.MonkeyPatch) -> None:
    """Manifests five times a second."""
    constitution = msgspec.structs.replace(load_constitution("devnet"), manifest_interval=0.2)
    patch.setattr(_full, "load_constitution", lambda profile: constitution)


CASES: dict[str, tuple[str, str, Break]] = {
    "lookup_success": ("0.99", CALM, linked(9000.0)),
    "read_success": ("0.99", CALM, linked(9000.0)),
    "delivery": ("0.99", CALM, linked(30_000.0)),
    "mean_hops_within_log2": ("true", CALM.replace("nodes = 30", "nodes = 150"), without_shortcuts),
    "lookup_p99_seconds": ("1.0", CALM, linked(700.0)),
    "delivery_p99_seconds": ("1.0", CALM, linked(700.0)),
    "table_live_share": ("0.9", CHURN, with_params(failures_to_evict=10**6)),
    "honest_disconnected": ("0", RESTARTS, without_a_cache),
    "attacked_read_success": ("0.95", SYBIL, without_regions),
    "region_messages": ("256", SYBIL, with_params(region_parts=32, region_queries=10_000)),
    "forgotten": ("0.9", CUT, with_params(failures_to_evict=10**6)),
    "merged_seconds": ("150", CUT, without_merging),
    "across_lookup_success": ("0.99", CUT, without_merging),
    "punch_success": ("0.6", NAT, without_punching),
    "cone_pairs_reachable": ("0.6", NAT, without_punching),
    "future_refused": ("1.0", CLOCKS, without_tolerance),
    "stale_refused": ("1.0", CLOCKS, without_ageing),
    "answered": ("0.99", FULL, slow_hub),
    "directory": ("0.9", FULL, slow_hub),
    "gateway_usable_seconds": ("5.0", FULL, without_workers),
    "idle_mb_per_day": ("300.0", FULL, with_chatter),
}


def test_every_invariant_has_a_case_and_a_metric() -> None:
    assert set(CASES) == set(BOUNDS) == set(Invariants.__struct_fields__)


@pytest.mark.parametrize("name", CASES)
def test_an_invariant_holds_until_it_is_broken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, text, break_it = CASES[name]
    path = tmp_path / "small.toml"
    path.write_text(f'name = "{name}"\n{text}[invariants]\n{name} = {bound}\n')
    scenario = load_scenario(str(path))
    held, _ = run_seed(scenario, 1)
    assert held.invariants == {name: True}, held.metrics
    break_it(monkeypatch)
    failed, _ = run_seed(scenario, 1)
    assert failed.invariants == {name: False}, failed.metrics
    assert not failed.passed


@pytest.mark.parametrize(("fidelity", "name"), [("full", "delivery"), ("protocol", "answered")])
def test_what_a_fidelity_does_not_measure_cannot_be_asked_of_it(tmp_path: Path, fidelity: str, name: str) -> None:
    path = tmp_path / "small.toml"
    path.write_text(f'name = "s"\n{FULL.replace("full", fidelity, 1)}[invariants]\n{name} = 0.5\n')
    with pytest.raises(ConfigError, match=name):
        load_scenario(str(path))
