"""A network's statistics, put together from those who count."""

from __future__ import annotations

from owm.net._admission import Admission
from owm.net._interface import NetworkStatistics
from owm.net._penalties import Penalties
from owm.net._quota import PeerQuotas

__all__ = ["figures"]


def figures(
    admission: Admission,
    penalties: Penalties,
    quotas: PeerQuotas,
    now: float,
    *,
    dials: tuple[int, int],
    handshakes_failed: int,
    streams: int,
    passed: tuple[int, int],
) -> NetworkStatistics:
    """``dials`` are attempts and failures, ``passed`` the bytes in and out."""
    penalised, banned = penalties.count(now)
    return NetworkStatistics(
        connections=len(admission),
        inbound=admission.inbound,
        dials=dials[0],
        dials_failed=dials[1],
        handshakes_failed=handshakes_failed,
        refused=admission.refused,
        streams_refused=quotas.refused,
        penalised=penalised,
        banned=banned,
        streams=streams,
        bytes_in=passed[0],
        bytes_out=passed[1],
        bytes_left=admission.bytes_left(now),
        penalties=penalties.reasons,
        penalties_given=penalties.given,
    )
