"""Bodies of v1 (SRS 4.8.3). The same structs validate requests and write the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "Context",
    "Health",
    "Node",
    "Nodes",
    "Problem",
    "QueryRequest",
    "QueryResponse",
    "Restart",
    "Statistics",
    "TokenPiece",
    "Turn",
]

MaxTokens = Annotated[
    int,
    Meta(ge=1, le=32_768, description="At most so many new tokens, and no more than the model's context holds."),
]


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An earlier turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Meta(max_length=1_000_000)]


class Context(msgspec.Struct, frozen=True):
    """What the query stands in. An open object: keys besides these are accepted and change nothing."""

    messages: Annotated[tuple[Turn, ...], Meta(max_length=256, description="Earlier turns, the oldest first.")] = ()


class QueryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question."""

    query: Annotated[str, Meta(min_length=1, max_length=1_000_000, description="The question.")]
    context: Context = Context()
    max_tokens: MaxTokens = 256
    stream: Annotated[bool, Meta(description="Answer as /v1/query/stream does.")] = False


class QueryResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and who gave it."""

    query_id: str
    answer: str
    sub_models_used: tuple[str, ...]
    data_sources: tuple[str, ...]
    confidence: float | None
    model_version: Annotated[str, Meta(description="First 12 hex digits of the model file's SHA-256.")]
    ots_verified: bool
    latency_ms: int
    cost_sats: int
    worker: Annotated[str, Meta(description="Pseudonym of the worker, as in /v1/network/nodes.")]
    receipt_id: str
    attempts: int
    time_to_first_token_ms: int | None


class TokenPiece(msgspec.Struct, frozen=True):
    """Data of the event `token`."""

    text: str


class Restart(msgspec.Struct, frozen=True):
    """Data of the event `restart`: drop all text so far, the whole new answer follows."""

    reason: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem (RFC 7807)."""

    type: str
    title: str
    status: int
    detail: str
    field: Annotated[str | None, Meta(description="JSON path of the part that is wrong.")] = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, under a pseudonym that holds until the gateway restarts."""

    pseudonym: str
    tier: str
    models: tuple[str, ...]
    running: int
    slots: int
    latency_ms: float | None
    age_s: float


class Nodes(msgspec.Struct, frozen=True):
    nodes: tuple[Node, ...]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """The network as this gateway sees it, and what the gateway did since it started."""

    network: str
    peers_known: int
    connections: int
    workers: int
    tasks_running: int
    tasks_completed: int
    tasks_failed: int
    tasks_reassigned: int
    requests_in_flight: int
    requests_answered: int
    uptime_s: float


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"]
    workers: int
