"""Points of the key space that can be asked for, and how many peers share it.

kad-dht messages carry what is hashed, not the hash, so asking for a region needs a key whose hash falls into it. Such
keys are found by trying, once per process, as go-libp2p does for its refresh of buckets.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from functools import lru_cache
from statistics import median
from typing import Final

from owm.dht._core_types import KEY_BITS, Contact

__all__ = [
    "MAX_PREFIX_BITS",
    "READY_BITS",
    "SizeEstimator",
    "estimate_size",
    "preimage",
    "preimages_ready",
    "prepare_preimages",
]

MAX_PREFIX_BITS: Final = 16
READY_BITS: Final = 12  #: prefixes up to so many bits take 40 ms to prepare, longer ones a second
_STEPS: Final = (6, 9, 12, 16)
_UNSET: Final = 0xFFFFFFFF
_made: Final[set[int]] = set()  # the steps whose table exists


def _candidate(number: int) -> bytes:
    return b"\x12\x20" + number.to_bytes(32, "big")  # shaped like a peer id, for peers that check


@lru_cache(maxsize=len(_STEPS))
def _numbers(bits: int) -> array[int]:
    found = array("I", [_UNSET]) * (1 << bits)
    missing = len(found)
    number = 0
    shift = 32 - bits
    while missing:
        prefix = int.from_bytes(hashlib.sha256(_candidate(number)).digest()[:4], "big") >> shift
        if found[prefix] == _UNSET:
            found[prefix] = number
            missing -= 1
        number += 1
    _made.add(bits)
    return found


def prepare_preimages(bits: int = READY_BITS) -> None:
    """Compute ahead what :func:`preimage` needs for prefixes of that many bits (12: 40 ms; 16: 1 s)."""
    preimage(0, bits)


def preimages_ready(bits: int = READY_BITS) -> bool:
    """Whether :func:`prepare_preimages` has been called with as many bits."""
    return any(step in _made for step in _STEPS if step >= bits)


def preimage(target: int, bits: int) -> bytes:
    """A key whose place in the key space shares its first ``bits`` (at most 16) with ``target``."""
    step = next(step for step in _STEPS if step >= min(bits, MAX_PREFIX_BITS))
    return _candidate(_numbers(step)[target >> (KEY_BITS - step)])


def estimate_size(target: int, nearest: list[Contact], k: int) -> float:
    """How many peers there are where these are the ``k`` nearest to a target, nearest first; fewer than k are all.

    The i-th nearest of n uniform peers lies at i/(n+1) of the key space on average, so n follows by least squares
    (Trautwein et al. 2022, section 5.3).
    """
    if len(nearest) < k:
        return float(len(nearest))
    ranks = range(1, len(nearest) + 1)
    weighted = sum(rank * (contact.key ^ target) for rank, contact in zip(ranks, nearest, strict=True))
    slope = (weighted >> (KEY_BITS - 64)) / sum(rank * rank for rank in ranks) / 2.0**64
    return max(float(len(nearest)), 1.0 / slope - 1.0) if slope > 0 else float(len(nearest))


class SizeEstimator:
    """How many server-mode peers there are, from how near lookups come to their targets.

    Each lookup gives one estimate, and the median over the last ones shrugs off a target that somebody has crowded.
    """

    __slots__ = ("_estimates", "_k")

    def __init__(self, k: int) -> None:
        self._k = k
        self._estimates: deque[float] | None = None  # made on first use: a simulation has many idle peers

    def note(self, target: int, nearest: list[Contact]) -> None:
        """The peers nearest to a target, nearest first."""
        if not nearest:
            return
        if self._estimates is None:
            self._estimates = deque(maxlen=15)
        self._estimates.append(estimate_size(target, nearest, self._k))

    @property
    def size(self) -> float | None:
        """Server-mode peers other than us, or None before the first lookup."""
        return median(self._estimates) if self._estimates else None
