"""What a scenario asks for, held against what was measured."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from simulations._scenario import Scenario

__all__ = ["BOUNDS", "judge"]

_LEAST: Final = operator.ge
_MOST: Final = operator.le

#: Invariant: the metric that it bounds, and from which side.
BOUNDS: Final[dict[str, tuple[str, Callable[[float, float], bool]]]] = {
    "lookup_success": ("find_peer_success", _LEAST),
    "read_success": ("get_success", _LEAST),
    "delivery": ("delivery", _LEAST),
    "mean_hops_within_log2": ("find_peer_mean_hops", _MOST),
    "lookup_p99_seconds": ("find_peer_p99_seconds", _MOST),
    "delivery_p99_seconds": ("delivery_p99_seconds", _MOST),
    "table_live_share": ("table_live_share", _LEAST),
    "honest_disconnected": ("honest_disconnected", _MOST),
    "attacked_read_success": ("get_attacked_success", _LEAST),
    "region_messages": ("region_max_messages", _MOST),
    "forgotten": ("forgotten_share", _LEAST),
    "merged_seconds": ("merged_seconds", _MOST),
    "across_lookup_success": ("find_peer_across_success", _LEAST),
    "punch_success": ("punch_success", _LEAST),
    "cone_pairs_reachable": ("cone_pairs_reachable", _LEAST),
    "future_refused": ("get_future_success", _LEAST),
    "stale_refused": ("put_stale_success", _LEAST),
    "answered": ("query_success", _LEAST),
    "directory": ("directory_share", _LEAST),
    "gateway_usable_seconds": ("gateway_usable_max_seconds", _MOST),
    "idle_mb_per_day": ("idle_worker_mb_per_day", _MOST),
}


def judge(scenario: Scenario, metrics: Mapping[str, Any]) -> dict[str, bool]:
    """Each invariant that the scenario asks for, and whether it holds; what was not measured does not."""
    found: dict[str, bool] = {}
    for name, (metric, holds) in BOUNDS.items():
        bound = getattr(scenario.invariants, name)
        if bound is None or bound is False:
            continue
        if bound is True:
            bound = math.log2(scenario.nodes)
        value = metrics.get(metric)
        found[name] = value is not None and not math.isnan(value) and holds(value, bound)
    return found
