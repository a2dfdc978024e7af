"""How messages travel: latency by region or matrix, jitter, loss as delay or reset, partitions, NAT.

A stream never loses bytes: a lost packet is a retransmission, so loss shows as delay, or as a reset when it is heavy.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from simulations._engine import SECOND

__all__ = ["LinkModel", "Links", "read_matrix"]

#: One-way latency in milliseconds between regions; round figures of public measurements of cloud regions.
REGIONS: dict[str, dict[str, float]] = {
    "eu": {"eu": 12, "us-east": 42, "us-west": 70, "asia": 95, "sa": 100},
    "us-east": {"eu": 42, "us-east": 12, "us-west": 32, "asia": 90, "sa": 60},
    "us-west": {"eu": 70, "us-east": 32, "us-west": 12, "asia": 60, "sa": 90},
    "asia": {"eu": 95, "us-east": 90, "us-west": 60, "asia": 25, "sa": 150},
    "sa": {"eu": 100, "us-east": 60, "us-west": 90, "asia": 150, "sa": 20},
}


class LinkModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[links]`` table of a scenario. Times in milliseconds, one way."""

    latency_ms: float = 40.0  #: between any two nodes, where no regions are given
    jitter: float = 0.2  #: standard deviation as a share of the latency
    regions: dict[str, float] = {}  #: share of the population per region; see REGIONS
    matrix: str = ""  #: a CSV of one-way latencies (header: region names), instead of the built-in table
    loss: float = 0.0  #: probability that a message waits for a retransmission
    retransmit_ms: float = 200.0
    reset: float = 0.0  #: probability that a message's stream is reset


def read_matrix(path: Path) -> dict[str, dict[str, float]]:
    """Read a latency matrix: first row and first column name the regions. Raises ValueError when it is not square."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    names = rows[0][1:]
    if [row[0] for row in rows[1:]] != names or any(len(row) != len(names) + 1 for row in rows):
        raise ValueError(f"{path}: a latency matrix names the same regions in its first row and first column")
    return {row[0]: {name: float(cell) for name, cell in zip(names, row[1:], strict=True)} for row in rows[1:]}


class Links:
    """Draws the delay of each message between numbered nodes.

    Args:
        regions: each node's region, by node number; empty when the model has none.
    """

    def __init__(self, model: LinkModel, random: Random, regions: Sequence[str] = ()) -> None:
        self._model = model
        self._sides: dict[int, int] = {}
        self._one_way = False
        self._draw = random.random
        self._base = int(model.latency_ms * 1000)
        self._spread = model.jitter * 2.449
        self._loss, self._reset = model.loss, model.reset
        self._table: list[list[int]] | None = None
        self._region_of: list[int] = []
        if regions:
            table = read_matrix(Path(model.matrix)) if model.matrix else REGIONS
            names = sorted(set(regions))
            self._region_of = [names.index(region) for region in regions]
            self._table = [[int(table[a][b] * 1000) for b in names] for a in names]

    def partition(self, side: Sequence[int], one_way: bool = False) -> None:
        """Cut the nodes of ``side`` off from all others; one-way drops only what they send."""
        self._sides = dict.fromkeys(side, 1)
        self._one_way = one_way

    def heal(self) -> None:
        self._sides = {}

    @property
    def cut(self) -> bool:
        """Whether there is a partition."""
        return bool(self._sides)

    def reachable(self, source: int, destination: int) -> bool:
        """Whether a message gets through the partition, if there is one."""
        if not self._sides:
            return True
        a, b = self._sides.get(source, 0), self._sides.get(destination, 0)
        return a == b or (self._one_way and a == 0)

    def delay(self, source: int, destination: int) -> int:
        """Microseconds until arrival; -1 when the message is lost with its stream or cut off."""
        if self._sides and not self.reachable(source, destination):
            return -1
        base = self._base
        if self._table is not None:
            base = self._table[self._region_of[source]][self._region_of[destination]]
        draw = self._draw
        if self._spread:
            # A triangular spread with the wanted deviation: cheap, bounded, never negative for jitter up to 0.4.
            base = int(base * (1.0 + self._spread * (draw() + draw() - 1.0)))
        if self._loss and draw() < self._loss:
            base += int(self._model.retransmit_ms * 1000)
        if self._reset and draw() < self._reset:
            return -1
        return base if base > 0 else 1


def seconds(value: float) -> int:
    """Seconds as microseconds."""
    return int(value * SECOND)
