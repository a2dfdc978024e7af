"""How long nodes stay and how long they are away.

Sessions on public networks are heavy-tailed: a Weibull with shape below 1 fits them (D. Stutzbach and R. Rejaie,
"Understanding churn in peer-to-peer networks", IMC 2006, fit shapes of 0.34, 0.38 and 0.59 to three BitTorrent
swarms, and find Gnutella's and Kad's sessions much alike).

A run looks at a network that has long been up. So who is online at its start is drawn from the steady state, and what
is left of that first session, or absence, from the residual: long ones are more likely to be met than short ones.
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
    mean_absence: float = 600.0  #: seconds away; the share online is mean_session / (mean_session + mean_absence)
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

    def starts_online(self) -> bool:
        """Whether a node that churns is online when we begin to look."""
        model = self._model
        return self._random.random() * (model.mean_session + model.mean_absence) < model.mean_session

    def residual(self, mean: float) -> float:
        """What is left of a session or absence that was under way when we began to look.

        Its density is the share of lengths above x, divided by their mean. For a Weibull of shape k and scale s that is
        the density of s * G ** (1 / k) with G from a gamma distribution of shape 1 / k.
        """
        shape = self._model.shape if self._model.kind == "weibull" else 1.0
        scale = mean / math.gamma(1 + 1 / shape)
        power: float = 1 / shape
        left: float = scale * self._random.gammavariate(power, 1.0) ** power
        return left

    def first(self, online: bool) -> float:
        """What is left of the session, or of the absence, that a node is in at the start."""
        return self.residual(self._model.mean_session if online else self._model.mean_absence)

    def churns(self) -> bool:
        """Whether the next node is one that comes and goes."""
        return self._model.kind in ("exponential", "weibull") and self._random.random() < self._model.share

    def schedule(self, node: int) -> list[tuple[float, float]]:
        """The traced sessions of a node, as (up, down) in seconds."""
        return self._trace.get(node, [])
