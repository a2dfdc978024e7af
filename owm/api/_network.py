"""What anybody may see of the network, under pseudonyms, and the gateway's liveness."""

from __future__ import annotations

import msgspec
from quart import Blueprint, Response
from quart_trio.wrappers import TrioResponse

from owm.api._bodies import Health, Node, Nodes, Statistics
from owm.api._gateway import Gateway

__all__ = ["network_routes"]


def network_routes(gateway: Gateway) -> Blueprint:
    """Routes under /v1/network, and /healthz."""
    routes = Blueprint("network", __name__)

    @routes.get("/v1/network/nodes")
    async def nodes() -> Response:
        listed = tuple(
            Node(
                pseudonym=gateway.pseudonym(node.peer),
                tier=node.tier,
                models=node.models,
                running=node.running,
                slots=node.slots,
                latency_ms=node.latency_ms,
                age_s=round(node.age_s, 1),
            )
            for node in gateway.backend.nodes()
        )
        return _json(Nodes(listed))

    @routes.get("/v1/network/stats")
    async def statistics() -> Response:
        seen = msgspec.structs.asdict(gateway.backend.statistics())
        return _json(
            Statistics(
                **seen,
                requests_in_flight=len(gateway.work),
                requests_answered=gateway.answered,
                uptime_s=round(gateway.uptime, 1),
            )
        )

    @routes.get("/healthz")
    async def health() -> Response:
        gateway.work.check()  # who balances load over gateways asks here
        return _json(Health("ok", gateway.backend.statistics().workers))

    return routes


def _json(body: msgspec.Struct) -> Response:
    return TrioResponse(msgspec.json.encode(body), content_type="application/json")
