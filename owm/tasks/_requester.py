"""The asking side: finds a worker, hands the answer on as it comes, and finds another worker when one is lost.

An answer is always one worker's: what a lost worker had sent is declared void by a Restart before another's begins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Final, Self

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.directory import Directory, Peer
from owm.errors import OwmError
from owm.identity import Identity, PeerId
from owm.net import Network, Penalty
from owm.net.errors import NetworkError, ProtocolNotSupported, TooManyStreams
from owm.store import Store
from owm.store.errors import StoreError
from owm.tasks._attempt import FAULTS, Attempt, Proof, unpack
from owm.tasks._core_life import TaskEvent, TaskLife
from owm.tasks._dispatch_log import DispatchLog
from owm.tasks._events import Completed, Embedded, Event, Restart, Started, TokenEvent
from owm.tasks._receipts import unpacked_logprob
from owm.tasks._request_log import RequestLine
from owm.tasks._scheduler import Scheduler
from owm.tasks._types import Body, EmbedTask, InferenceTask, Tokens
from owm.tasks.errors import (
    ConsumerTooSlow,
    Impossible,
    InvalidTask,
    NoWorkers,
    TaskFailed,
    TaskRefused,
    TaskTimedOut,
)

__all__ = ["TaskEvents", "TaskRequester"]

_log = structlog.get_logger(__name__)

_BUFFER: Final = 256  # events that may wait for the consumer
_AGREEMENT: Final = 2  # workers whose word that a task cannot be done is believed
_BYTES_PER_TOKEN: Final = 4
_USUAL_ANSWER: Final = 512  # tokens
_NOT_COUNTED: Final = ("busy", "draining")


class TaskEvents:
    """The events of one task: an asynchronous iterator that ends after Completed, or raises why there is none."""

    def __init__(self, receive: trio.MemoryReceiveChannel[Event]) -> None:
        self._receive = receive
        self.error: OwmError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self.error is not None:
                raise self.error from None
            raise StopAsyncIteration from None


class _Job:
    """A task on its way through attempts."""

    def __init__(self, body: Body, send: trio.MemorySendChannel[Event], events: TaskEvents, created: float) -> None:
        self.body = body
        self.send = send
        self.events = events
        self.type = str(type(body).__struct_config__.tag)
        self.line = RequestLine(self.type, created)
        self.context = _estimate(body)
        self.life = TaskLife()
        self.scope = trio.CancelScope()
        self.finished = trio.Event()
        self.emitted = False  #: tokens of the present attempt have gone out
        self.excluded: set[PeerId] = set()
        self.verdicts: dict[PeerId, Impossible] = {}  #: of workers that say that nobody could do it
        self.ended = "failed"  #: how the present attempt did, if it was not the last
        self.proof: Proof | None = None
        self.vectors: list[bytes] = []
        self.last_error = ""


class TaskRequester:
    """Gets tasks done by others. Use as ``async with requester.running():``.

    Args:
        random: for task ids, ephemeral keys and salts; ``random.SystemRandom()`` anywhere but in a simulation.
        task_timeout: seconds for a task, waiting and all attempts together.
        consumer_timeout: seconds a consumer may leave a full buffer unread before its task is cancelled.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        scheduler: Scheduler,
        identity: Identity,
        store: Store,
        network_id: str,
        clock: Clock,
        random: Random,
        *,
        task_timeout: float = 120.0,
        consumer_timeout: float = 10.0,
    ) -> None:
        self._network = network
        self._directory = directory
        self._scheduler = scheduler
        self._identity = identity
        self._store = store
        self._network_id = network_id
        self._clock = clock
        self._random = random
        self._task_timeout = task_timeout
        self._consumer_timeout = consumer_timeout
        self.log = DispatchLog(store)
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Load the dispatch log and schedule until the block ends; leaving cancels every task."""
        await self.log.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._scheduler.run)
            self._nursery = nursery
            try:
                yield self
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def inference(self, task: InferenceTask, timeout: float | None = None) -> AsyncIterator[TaskEvents]:
        """Have an answer generated; leaving the block cancels the work at the worker.

        Iterating the events raises, in place of Completed:
            NoWorkers: nobody is left who could do it.
            TooManyTasks: our queue is full.
            InvalidTask: two workers, or all there are, agree that it cannot be done: the prompt is too long.
            TaskFailed: the time was up, or every attempt failed.
            ConsumerTooSlow: the events were not read in time.
        """
        async with self._submitted(task, timeout) as job:
            yield job.events

    async def embed(self, texts: Sequence[str], model: str = "", timeout: float | None = None) -> Embedded:
        """Have texts embedded; raises what :meth:`inference` does."""
        task = EmbedTask(texts=tuple(texts), model=model)
        async with self._submitted(task, timeout) as job:
            async for event in job.events:
                if isinstance(event, Completed):
                    return Embedded(unpack(job.vectors), event)
        raise TaskFailed("the task ended without a result")

    @asynccontextmanager
    async def _submitted(self, body: Body, timeout: float | None) -> AsyncIterator[_Job]:
        if self._nursery is None:
            raise TaskFailed("this peer is stopping")
        try:
            body = msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=Body)
        except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as error:
            raise InvalidTask(str(error)) from error
        send, receive = trio.open_memory_channel[Event](_BUFFER)
        job = _Job(body, send, TaskEvents(receive), self._clock.time())
        self._nursery.start_soon(self._run, job, timeout or self._task_timeout)
        try:
            yield job
        finally:
            receive.close()
            job.scope.cancel()
            with trio.CancelScope(shield=True):
                await job.finished.wait()

    async def _run(self, job: _Job, timeout: float) -> None:
        """The job's task: sets its error rather than raising."""
        try:
            with job.scope, trio.move_on_after(timeout) as timer:
                await self._attempts(job, trio.current_time() + timeout)
            if timer.cancelled_caught:
                job.events.error = TaskTimedOut(f"not done within {timeout:.0f} s: {job.last_error or 'no answer'}")
        except OwmError as error:
            job.events.error = error
        finally:
            over = job.life.is_over
            if not over:
                job.life.apply(TaskEvent.GIVE_UP if job.events.error else TaskEvent.CANCEL)
            job.send.close()
            job.finished.set()
            if not over:
                await self._log_end(job)

    async def _log_end(self, job: _Job, state: str = "") -> None:
        """Write down how the job ended or, with a state, how its present attempt did."""
        with trio.CancelScope(shield=True):
            try:
                await self._log(job, state)
            except StoreError as error:
                _log.warning("the task log could not be written", error=str(error))

    async def _attempts(self, job: _Job, deadline: float) -> None:
        while True:
            try:
                excluded = frozenset(job.excluded)
                async with self._scheduler.lease(job.type, job.body.model, excluded, job.context) as worker:
                    done = await self._attempt(job, worker, deadline - trio.current_time())
            except NoWorkers as error:
                if job.verdicts and job.excluded == job.verdicts.keys():
                    raise _impossible(job) from error
                if job.last_error:
                    raise NoWorkers(f"{error} (the last one failed: {job.last_error})") from error
                raise
            if done:
                return
            await self._log_end(job, job.ended)
            if job.emitted:
                job.emitted = False
                await self._emit(job, Restart(job.last_error))
            if not job.life.may_retry:
                raise TaskFailed(f"given up after {job.life.attempts} attempts: {job.last_error}")

    async def _attempt(self, job: _Job, worker: Peer, remaining: float) -> bool:
        """One attempt; False when another worker is to be asked."""
        job.life.apply(TaskEvent.OFFER)
        attempt = Attempt(
            network=self._network,
            identity=self._identity,
            network_id=self._network_id,
            clock=self._clock,
            worker=worker,
            life=job.life,
            body=job.body,
            task=self._random.randbytes(16),
            secret=self._random.randbytes(32),
            salt=self._random.randbytes(32),
            remaining=remaining,
        )
        number = job.life.attempts
        job.line.begin(attempt.task, worker.id, attempt.salt, job.body, self._clock.time())
        job.ended = "failed"

        async def accepted() -> None:
            job.line.started = self._clock.time()
            await self._emit(job, Started(attempt.task.hex(), worker.id, number))

        async def output(tokens: Tokens) -> None:
            for text, token, logprob in zip(tokens.text, tokens.ids, tokens.logprobs, strict=True):
                job.emitted = True
                await self._emit(job, TokenEvent(text, token, unpacked_logprob(logprob)))

        try:
            line, now = job.line, self._clock.time()
            entry = line.entry(job.life.state.value, None)
            await self.log.append(attempt.task, worker.id, job.type, number, now, entry, line.input)
            proof = await attempt.run(accepted, output)
        except TaskRefused as error:
            self._refused(job, worker, error)
            return False
        except Impossible as error:
            self._doubted(job, worker, error)
            return False
        except TooManyStreams as error:  # ours is the limit: nobody failed
            job.last_error, job.ended = str(error), "refused"
            job.life.refused()
            self._scheduler.busy(worker.id)
            return False
        except FAULTS as error:
            self._network.penalise(worker.id, Penalty.MID_TOLERANCE, str(error))
            self._lost(job, worker, error)
            return False
        except (NetworkError, ProtocolNotSupported, TaskFailed) as error:
            self._lost(job, worker, error)
            return False
        self._scheduler.outcome(worker.id, True, attempt.latency)
        for refuser in job.verdicts:
            if _as_able(self._directory.get(refuser), worker):
                self._scheduler.outcome(refuser, False)  # what it called impossible was done by its like
        job.proof, job.vectors = proof, attempt.vectors
        finished = proof.finished
        await self._log(job)
        await self._emit(
            job,
            Completed(attempt.task.hex(), worker.id, finished.finish, finished.model, proof.receipt, number),
        )
        return True

    def _refused(self, job: _Job, worker: Peer, error: TaskRefused) -> None:
        job.last_error, job.ended = str(error), "refused"
        if error.code in _NOT_COUNTED:
            job.life.refused()
            self._scheduler.busy(worker.id)
        else:
            job.life.apply(TaskEvent.REQUEUE)
        if error.code != "busy":
            job.excluded.add(worker.id)

    def _doubted(self, job: _Job, worker: Peer, error: Impossible) -> None:
        """One worker's word ends no task; that of two does."""
        job.last_error = f"a worker says that it cannot be done ({error.code})"
        job.excluded.add(worker.id)
        job.verdicts[worker.id] = error
        job.life.apply(TaskEvent.REQUEUE)
        _log.info("said to be impossible", worker=worker.id.short, task=job.line.id, reason=str(error)[:512])
        if len(job.verdicts) >= _AGREEMENT:
            raise _impossible(job)

    def _lost(self, job: _Job, worker: Peer, error: Exception) -> None:
        job.last_error = str(error)
        job.excluded.add(worker.id)
        job.life.apply(TaskEvent.REQUEUE)
        self._scheduler.outcome(worker.id, False)
        _log.info("a worker was lost", worker=worker.id.short, task=job.line.id, reason=str(error))

    async def _emit(self, job: _Job, event: Event) -> None:
        with trio.move_on_after(self._consumer_timeout) as scope:
            try:
                await job.send.send(event)
            except trio.BrokenResourceError:
                job.scope.cancel()  # the block was left
                await trio.lowlevel.checkpoint()
        if scope.cancelled_caught:
            raise ConsumerTooSlow(f"the answer was not read for {self._consumer_timeout:.0f} s")

    async def _log(self, job: _Job, state: str = "") -> None:
        job.line.id = job.line.id or f"undispatched-{self._random.randbytes(8).hex()}"
        proof = job.proof
        error = "" if proof else str(job.events.error or job.last_error)
        entry = job.line.entry(state or job.life.state.value, self._clock.time(), error, proof)
        await self._store.log_task(entry, *([proof.output] if proof else []))


def _estimate(body: Body) -> int:
    """About as many tokens as a worker's context should have; 0 where it does not matter.

    Clients ask for far more new tokens than they get: an answer of usual length has to fit.
    """
    if isinstance(body, EmbedTask):
        return 0
    prompt = sum(len(message.content.encode()) for message in body.messages) // _BYTES_PER_TOKEN
    return prompt + min(body.max_tokens, _USUAL_ANSWER)


def _as_able(refuser: Peer | None, worker: Peer) -> bool:
    """Whether one says that it serves all that the other does, with contexts as large."""
    theirs = {model.sha256: model.context for model in refuser.manifest.models} if refuser is not None else {}
    return all(theirs.get(model.sha256, -1) >= model.context for model in worker.manifest.models)


def _impossible(job: _Job) -> InvalidTask:
    """In our words: a worker's own are for the log alone."""
    if all(verdict.code == "too_long" for verdict in job.verdicts.values()):
        if isinstance(job.body, EmbedTask):
            return InvalidTask("the texts have too many tokens for one request: send fewer at once", "too_long")
        return InvalidTask("the prompt is too long for the context of the workers: shorten it", "too_long")
    return InvalidTask("the workers that were asked say that this cannot be done as asked", "refused")
