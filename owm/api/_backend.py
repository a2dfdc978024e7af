"""What the API asks of the network behind it. A gateway role satisfies it; tests run it over an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from owm.model import Embeddings, GenerateRequest
from owm.records import ServedModel

__all__ = [
    "AnswerEvent",
    "Answered",
    "Backend",
    "NetworkStatistics",
    "NodeInfo",
    "Restarted",
    "Started",
    "TokenText",
]


class Started(msgspec.Struct, frozen=True):
    """A worker took the task."""

    worker: str  #: its peer id; the API shows a pseudonym only
    attempt: int  #: 1 for the first worker asked
    model_sha256: str  #: of the model that it answers with


class TokenText(msgspec.Struct, frozen=True):
    """The next piece of the answer; may be empty while a character is incomplete."""

    text: str
    logprob: float | None = None  #: natural logarithm of its probability, where the worker says


class Restarted(msgspec.Struct, frozen=True):
    """The worker died: what was streamed so far is void, another one begins anew."""

    reason: str


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The last event: the answer is complete and its receipt verified."""

    worker: str  #: peer id
    attempts: int
    receipt_id: str
    model: str
    model_sha256: str
    finish: str  #: "stop" or "length"
    prompt_tokens: int
    completion_tokens: int


AnswerEvent = Started | TokenText | Restarted | Answered


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as this gateway sees it."""

    peer: str  #: peer id; never leaves the gateway
    tier: str  #: "t0" ... "t3"
    models: tuple[str, ...]
    running: int  #: tasks in work
    slots: int  #: tasks that fit at once
    latency_ms: float | None  #: round trip measured by this gateway; None before the first measurement
    age_s: float  #: seconds since its manifest arrived


class NetworkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The network, as this gateway sees it."""

    network: str  #: the network's name
    peers_known: int
    connections: int
    workers: int
    tasks_running: int  #: dispatched by this gateway
    tasks_completed: int
    tasks_failed: int
    tasks_reassigned: int


class Backend(Protocol):
    """Where answers come from. Everything it raises on purpose is an :class:`owm.api.ApiError`."""

    def answer(
        self, request: GenerateRequest, *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[AnswerEvent]]:
        """Stream an answer; the last event is :class:`Answered`. Leaving the block cancels the work everywhere.

        Raises:
            NoWorker: nobody serves the model, or all who do failed.
            PromptTooLarge, BadRequest: the worker refused it before any token.
            TimedOut, WorkFailed: after the work began.
        """

    async def embed(self, texts: Sequence[str], model: str) -> Embeddings:
        """Embed texts; an empty model means the advertised one. Raises as :meth:`answer`."""

    def models(self) -> tuple[ServedModel, ...]:
        """What the workers serve now, the default chat model first."""

    def nodes(self) -> tuple[NodeInfo, ...]:
        """The workers that are usable now."""

    def statistics(self) -> NetworkStatistics: ...
