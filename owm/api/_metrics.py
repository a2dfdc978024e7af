"""What the API counts for Prometheus: requests, how long they took, tokens."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["Metrics"]

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The counters of one gateway.

    Args:
        registry: where they are shown; a registry of their own when left out.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._requests = Counter(
            "owm_api_requests", "requests, by route and HTTP status", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "owm_api_request_seconds",
            "seconds from a request's head to the end of its response, by route",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "owm_api_first_token_seconds", "seconds to an answer's first token", buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter(
            "owm_api_tokens", "tokens of complete answers, by kind: prompt or completion", ["kind"], registry=registry
        )

    def responded(self, route: str, status: str, seconds: float) -> None:
        """Count a response.

        Args:
            route: the route's pattern, never a path that a client chose; "other" where there is none.
            status: of HTTP; "gone" when the client left before there was one.
            seconds: from the request's head to the end.
        """
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def answered(self, prompt: int, completion: int) -> None:
        """Count the tokens of a complete answer."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)
