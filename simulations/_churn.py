"""How long nodes stay and how long they are away.

Sessions on public networks are heavy-tailed: a Weibull with shape below 1 fits them (Stutzbach and Rejaie,
"Understanding churn in peer-to-peer networks", IMC 2006, find shapes of 0.34 to 0.59 for Gnutella, Kad and BitTorrent).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

__all__ = ["Churn", "ChurnModel"]


class ChurnModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[churn]`` table of a scenario."""

    kind: Literal["none", "exponential", "weibull", "trace"] = "none"
    mean_session: float = 1800.0  #: seconds online
    mean_absence: float = 600.0  #: seconds away
    shape: float = 0.5  #: of the Weibull distribution
    trace: str = ""  #: CSV with the columns node, up, down (seconds)
    share: float = 1.0  #: of the population that churns; the rest stays


class Churn:
    """Draws sessions and absences; a new model is another kind here."""

    def __init__(self, model: ChurnModel, random: Random) -> None:
        self._model = model
        self._random = random
        self._trace: dict[int, list[tuple[float, float]]] = {}
        if model.kind == "trace":
            with Path(model.trace).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    self._trace.setdefault(int(row["node"]), []).append((float(row["up"]), float(row["down"])))

    def _draw(self, mean: float) -> float:
        model = self._model
        if model.kind == "weibull":
            scale = mean / math.gamma(1 + 1 / model.shape)
            return self._random.weibullvariate(scale, model.shape)
        return self._random.expovariate(1 / mean)

    def session(self) -> float:
        """Seconds that a node stays from now."""
        return self._draw(self._model.mean_session)

    def absence(self) -> float:
        """Seconds that it is away."""
        return self._draw(self._model.mean_absence)

    def churns(self) -> bool:
        """Whether the next node is one that comes and goes."""
        return self._model.kind in ("exponential", "weibull") and self._random.random() < self._model.share

    def schedule(self, node: int) -> list[tuple[float, float]]:
        """The traced sessions of a node, as (up, down) in seconds."""
        return self._trace.get(node, [])
