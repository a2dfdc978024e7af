"""What a run measures, in columns ready for Parquet and CSV, and the statistics over them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["Measurements", "Outcome", "confidence", "percentile"]


#: What the workload does. A lookup is ``across`` when the two were on different sides of a partition; a read is of an
#: ``attacked`` key, or of a record from the ``future``, where success is not to believe it; a store is of a ``stale``
#: record, where success is that nobody takes it. A punch is a dial between two cone NATs.
KINDS = (
    "find_peer", "find_peer_across", "put", "put_stale", "get", "get_attacked", "get_future", "dial", "punch",
    "publish", "query",
)  # fmt: skip
_TIMED = ("find_peer", "find_peer_across", "put", "get", "get_attacked", "query")


class Operation(msgspec.Struct, frozen=True):
    """One operation of the workload, finished or not."""

    kind: str  #: one of KINDS
    started: float  #: seconds
    took: float  #: seconds; nan when it never ended, or takes no time in the model
    success: bool
    hops: int
    messages: int
    detail: float = math.nan  #: of a publish: the share of subscribers reached
    region: bool = False  #: it covered the key's region


class Sample(msgspec.Struct, frozen=True):
    """The state of the whole network at one time."""

    time: float
    online: int
    table_mean: float
    table_live_share: float
    mesh_mean: float
    messages: int  #: delivered since the start
    across_share: float = math.nan  #: of table entries, those that point across the last partition


class Measurements:
    """Collected by one run; plain data, so that it travels between processes."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.samples: list[Sample] = []
        self.delivery_times: list[float] = []
        self.shares: list[float] = []  #: of the workers online that gateways know, at each sample; full fidelity

    def of(self, kind: str) -> list[Operation]:
        return [o for o in self.operations if o.kind == kind]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one seed gave: ``owm simulate --json`` prints this object."""

    scenario: str
    nodes: int
    seed: int
    signatures: str
    simulated_seconds: float
    wall_seconds: float
    events: int
    messages: int
    events_per_second: float
    trace_hash: str
    invariants: dict[str, bool]
    metrics: dict[str, float | int | None]

    @property
    def passed(self) -> bool:
        return all(self.invariants.values())


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which ``share`` of the sorted values lie (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


#: Two-sided 95 % quantiles of Student's t by degrees of freedom; 1.96 beyond.
_T95 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)


def confidence(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t); half-width nan for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def summarise(measured: Measurements) -> dict[str, Any]:
    """The metrics of one run by name; None where nothing of the kind was done."""
    metrics: dict[str, Any] = {}
    for kind in KINDS:
        done = measured.of(kind)
        if not done:
            continue
        took = [o.took for o in done if o.success]
        metrics[f"{kind}_count"] = len(done)
        metrics[f"{kind}_success"] = sum(o.success for o in done) / len(done)
        if kind in _TIMED:
            metrics[f"{kind}_p50_seconds"] = percentile(took, 0.5)
            metrics[f"{kind}_p99_seconds"] = percentile(took, 0.99)
            if kind != "query":
                metrics[f"{kind}_mean_hops"] = statistics.fmean(o.hops for o in done)
                metrics[f"{kind}_mean_messages"] = statistics.fmean(o.messages for o in done)
        elif kind == "publish":
            metrics["delivery"] = statistics.fmean(o.detail for o in done)
            metrics["delivery_p50_seconds"] = percentile(measured.delivery_times, 0.5)
            metrics["delivery_p99_seconds"] = percentile(measured.delivery_times, 0.99)
    covering = [o.messages for o in measured.operations if o.region]
    if covering:
        metrics["region_mean_messages"] = statistics.fmean(covering)
        metrics["region_max_messages"] = max(covering)
    if measured.samples:
        last = measured.samples[-1]
        metrics["online"] = last.online
        metrics["table_mean"] = last.table_mean
        if not math.isnan(last.table_live_share):
            metrics["table_live_share"] = last.table_live_share
        metrics["mesh_mean"] = last.mesh_mean
    return metrics
