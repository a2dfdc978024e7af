"""The gateway role: requests work on behalf of the public, through the HTTP API."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import structlog

from owm.api import (
    Answered,
    AnswerEvent,
    ApiError,
    BadRequest,
    Busy,
    NetworkStatistics,
    NodeInfo,
    NoWorker,
    PromptTooLarge,
    Restarted,
    Started,
    TimedOut,
    TokenText,
    WorkFailed,
)
from owm.clock import Clock
from owm.config import Constitution
from owm.directory import Directory
from owm.errors import OwmError
from owm.identity import PeerId
from owm.model import Embeddings, GenerateRequest
from owm.net import Network
from owm.records import ServedModel, SignedRecord, TaskReceipt
from owm.tasks import (
    Completed,
    InferenceTask,
    Message,
    Restart,
    TaskEvents,
    TaskRequester,
    TokenEvent,
)
from owm.tasks import Started as TaskStarted
from owm.tasks.errors import ConsumerTooSlow, InvalidTask, NoWorkers, TaskTimedOut, TooManyTasks

__all__ = ["NetworkBackend"]

_log = structlog.get_logger(__name__)

_MODELS_LIFE: Final = 0.5  #: seconds for which a look at the whole directory is believed
_name_of: Final = lru_cache(maxsize=4096)(str)  #: of a peer; base58 is slow, and each answer names its worker twice
_LOST: Final = "the worker was lost; another one answers from the beginning"


@dataclass
class _Counters:
    running: int = 0
    completed: int = 0
    failed: int = 0
    reassigned: int = 0


class NetworkBackend:
    """What the API asks, answered by the workers of the network; satisfies :class:`owm.api.Backend`."""

    def __init__(
        self,
        requester: TaskRequester,
        directory: Directory,
        network: Network,
        constitution: Constitution,
        clock: Clock,
    ) -> None:
        self._requester = requester
        self._directory = directory
        self._network = network
        self._constitution = constitution
        self._clock = clock
        self._counters = _Counters()
        self._models: tuple[float, tuple[ServedModel, ...]] = (-math.inf, ())

    @asynccontextmanager
    async def answer(self, request: GenerateRequest, *, timeout: float) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
        """Stream an answer from whichever worker takes it; leaving cancels the work."""
        task = InferenceTask(
            messages=tuple(Message(message.role, message.content) for message in request.messages),  # type: ignore[arg-type]
            model=request.model,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stop,
        )
        self._counters.running += 1
        try:
            async with self._requester.inference(task, timeout=timeout) as events:
                yield self._translated(events, request.model)
        except OwmError as error:
            raise _as_api_error(error) from error
        finally:
            self._counters.running -= 1

    async def _translated(self, events: TaskEvents, model: str) -> AsyncIterator[AnswerEvent]:
        try:
            async for event in events:
                match event:
                    case TaskStarted(_, worker, attempt):
                        if attempt > 1:
                            self._counters.reassigned += 1
                        yield Started(_name_of(worker), attempt, self._model_of(worker, model))
                    case TokenEvent(text, _, logprob):
                        yield TokenText(text, logprob)
                    case Restart():
                        yield Restarted(_LOST)
                    case Completed():
                        self._counters.completed += 1
                        yield _answered(event)
        except OwmError as error:
            self._counters.failed += 1
            _log.info("a question was not answered", reason=str(error))
            raise _as_api_error(error) from error

    async def embed(self, texts: Sequence[str], model: str) -> Embeddings:
        self._counters.running += 1
        try:
            embedded = await self._requester.embed(texts, model)
        except OwmError as error:
            self._counters.failed += 1
            _log.info("texts were not embedded", reason=str(error))
            raise _as_api_error(error) from error
        finally:
            self._counters.running -= 1
        self._counters.completed += 1
        receipt = embedded.completed.details
        return Embeddings(
            vectors=embedded.vectors,
            prompt_tokens=receipt.prompt_tokens,
            model=embedded.completed.model,
            model_sha256=receipt.model_sha256,
        )

    def models(self) -> tuple[ServedModel, ...]:
        """Served by usable workers now, or half a second ago; chat models first, the most served first."""
        now = self._clock.monotonic()
        seen, served = self._models
        # Asked for up to three times per request. Nothing found is not kept, so that the first worker shows at once.
        if not served or now - seen >= _MODELS_LIFE:
            served = self._served()
            self._models = (now, served)
        return served

    def _model_of(self, worker: PeerId, model: str) -> str:
        """SHA-256 of the model that this worker answers with when asked for ``model``; empty if unknown."""
        peer = self._directory.get(worker)
        served = peer.manifest.models if peer is not None else ()
        return next((m.sha256 for m in served if m.kind == "chat" and model in ("", m.id)), "")

    def _served(self) -> tuple[ServedModel, ...]:
        found: dict[str, tuple[int, ServedModel]] = {}
        for peer in self._directory.peers():
            for model in peer.manifest.models:
                count = found.get(model.id, (0, model))[0]
                found[model.id] = (count + 1, model)
        ordered = sorted(found.values(), key=lambda entry: (entry[1].kind != "chat", -entry[0], entry[1].id))
        return tuple(model for _, model in ordered)

    def nodes(self) -> tuple[NodeInfo, ...]:
        now = self._clock.monotonic()
        round_trips = {c.peer: c.round_trip for c in self._network.connections()}
        found = []
        for peer in self._directory.peers():
            if "worker" not in peer.manifest.roles:
                continue
            measured = round_trips.get(peer.id)
            found.append(
                NodeInfo(
                    peer=str(peer.id),
                    tier=peer.manifest.tier,
                    models=tuple(model.id for model in peer.manifest.models),
                    running=peer.manifest.busy,
                    slots=peer.manifest.slots,
                    latency_ms=None if measured is None else round(measured * 1000, 2),
                    age_s=round(now - peer.seen, 1),
                )
            )
        return tuple(found)

    def statistics(self) -> NetworkStatistics:
        directory = self._directory.statistics()
        return NetworkStatistics(
            network=self._constitution.name,
            peers_known=directory.discovered,
            connections=len(self._network.peers()),
            workers=directory.workers,
            tasks_running=self._counters.running,
            tasks_completed=self._counters.completed,
            tasks_failed=self._counters.failed,
            tasks_reassigned=self._counters.reassigned,
        )


def _answered(event: Completed) -> Answered:
    receipt: TaskReceipt = event.details
    record: SignedRecord = event.receipt
    return Answered(
        worker=_name_of(event.worker),
        attempts=event.attempts,
        receipt_id=record.id.hex(),
        model=event.model,
        model_sha256=receipt.model_sha256,
        finish=event.finish,
        prompt_tokens=receipt.prompt_tokens,
        completion_tokens=receipt.completion_tokens,
    )


def _as_api_error(error: OwmError) -> OwmError:
    """What the client is told: never the reasons of single attempts, for those name peers."""
    match error:
        case ApiError():
            return error
        case NoWorkers():
            return NoWorker("no worker that could do this is available now; try again in 5 s", retry_after=5)
        case TooManyTasks():
            return Busy(str(error), retry_after=1)
        case InvalidTask(code="too_long"):
            return PromptTooLarge(str(error))
        case InvalidTask():
            return BadRequest(str(error))
        case TaskTimedOut():
            return TimedOut("the answer was not complete in time; ask again, or for fewer tokens")
        case ConsumerTooSlow():
            return TimedOut(str(error))
    return WorkFailed("the workers that were asked could not finish this; ask again")
