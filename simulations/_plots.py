"""The figures of a report, as PNG by file name; a figure for which there is no data is left out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from simulations._measure import Measurements, Operation, Sample

__all__ = ["plots"]

_Draw = Callable[[Any], None]

_LOOKUPS: Final = ("find_peer", "find_peer_across", "get", "get_attacked", "put")  # those that count hops
_BINS: Final = 40  # of simulated time
_LEGEND_UP_TO: Final = 8  # runs


def _figure(title: str, x: str, y: str, draw: _Draw) -> bytes:
    from matplotlib.figure import Figure  # no pyplot: it keeps global state and looks for a display

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _cdf(axes: Any, values: Sequence[float], label: str) -> None:
    ordered = sorted(values)
    axes.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], label=label)


def _hops(hops: Sequence[int]) -> _Draw:
    def draw(axes: Any) -> None:
        counts = [hops.count(n) / len(hops) for n in range(max(hops) + 1)]
        axes.bar(range(len(counts)), counts, width=0.8)
        axes.set_xticks(range(len(counts)))
        axes.set_xlim(-0.6, max(len(counts), 4) - 0.4)

    return draw


def _durations(done: Sequence[Operation]) -> _Draw:
    def draw(axes: Any) -> None:
        for kind in sorted({o.kind for o in done}):
            _cdf(axes, [o.took for o in done if o.kind == kind], kind)
        axes.set_xlim(left=0)
        axes.legend(frameon=False)

    return draw


def over_time(points: Sequence[tuple[float, float]], bins: int = _BINS) -> tuple[list[float], list[float]]:
    """Means of (time, value) points over equal spans of time: the middles and the means; empty spans are left out."""
    if not points:
        return [], []
    first = min(t for t, _ in points)
    width = max(max(t for t, _ in points) - first, 1e-9) / bins
    spans: dict[int, list[float]] = {}
    for t, value in points:
        spans.setdefault(min(int((t - first) / width), bins - 1), []).append(value)
    order = sorted(spans)
    return [first + (n + 0.5) * width for n in order], [sum(spans[n]) / len(spans[n]) for n in order]


def _shares(series: Mapping[int, tuple[Sequence[float], Sequence[float]]], marker: str = "") -> _Draw:
    """One line per seed of a share against time."""

    def draw(axes: Any) -> None:
        for seed, (times, values) in series.items():
            axes.plot(times, values, marker=marker, markersize=3, label=f"seed {seed}")
        axes.set_ylim(0, 1.05)
        axes.set_xlim(left=0)
        if len(series) <= _LEGEND_UP_TO:
            axes.legend(frameon=False)

    return draw


def _sampled(
    runs: Mapping[int, Measurements], value: Callable[[Sample], float]
) -> dict[int, tuple[list[float], list[float]]]:
    found = {}
    for seed, measured in runs.items():
        known = [(s.time, value(s)) for s in measured.samples if not math.isnan(value(s))]
        if known:
            found[seed] = ([t for t, _ in known], [v for _, v in known])
    return found


def plots(runs: Mapping[int, Measurements]) -> dict[str, bytes]:
    """The figures for which there is data.

    Args:
        runs: what each seed measured.
    """
    figures: dict[str, bytes] = {}
    operations = [o for measured in runs.values() for o in measured.operations]
    hops = [o.hops for o in operations if o.success and o.kind in _LOOKUPS]
    if hops:
        figures["hops"] = _figure("Hops of successful lookups", "hops", "share", _hops(hops))
    timed = [o for o in operations if o.success and not math.isnan(o.took)]
    if timed:
        figures["latency"] = _figure("Time of operations", "seconds", "share done", _durations(timed))
    published = {
        seed: over_time([(o.started, o.detail) for o in measured.operations if o.kind == "publish"])
        for seed, measured in runs.items()
        if any(o.kind == "publish" for o in measured.operations)
    }
    if published:
        figures["delivery"] = _figure(
            "Delivery over time", "simulated seconds", "share of subscribers reached", _shares(published, "o")
        )
    delays = [t for measured in runs.values() for t in measured.delivery_times]
    if delays:
        figures["delays"] = _figure(
            "Delay of messages", "seconds since publishing", "share delivered", lambda axes: _cdf(axes, delays, "")
        )
    health = _sampled(runs, lambda s: s.table_live_share)
    if health:
        figures["tables"] = _figure(
            "Routing table entries that are alive", "simulated seconds", "share", _shares(health)
        )
    across = _sampled(runs, lambda s: s.across_share)
    if across:
        figures["across"] = _figure(
            "Routing table entries across the partition", "simulated seconds", "share", _shares(across)
        )
    directory = {
        seed: ([s.time for s in measured.samples], measured.shares)
        for seed, measured in runs.items()
        if measured.shares
    }
    if directory:
        figures["directory"] = _figure(
            "Workers online that gateways know", "simulated seconds", "share", _shares(directory)
        )
    return figures
