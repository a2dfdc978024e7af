"""The working side: takes offers, runs them in the engine, streams sealed output, signs receipts.

One stream carries one task: back-pressure comes with it, and a reset from either side is the end of the task.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal, Self

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.errors import OwmError, UsageError
from owm.identity import Identity
from owm.model import ChatMessage, Done, Engine, GenerateRequest
from owm.model.errors import PromptTooLong
from owm.net import FrameStream, Network, Penalty, Stream
from owm.net.errors import NetworkError, ProtocolViolation
from owm.records import TaskReceipt, sign_record
from owm.store import Content, Store
from owm.tasks._core_sealing import Binding, Opener, Sealer, worker_keys
from owm.tasks._job import Job, WorkerLimits, WorkerStatistics
from owm.tasks._receipts import (
    answer_content,
    countersigned,
    input_content,
    most_tokens,
    packed_logprob,
    vectors_content,
)
from owm.tasks._types import (
    MAX_FRAME,
    Accepted,
    EmbedTask,
    Failed,
    Finished,
    InferenceTask,
    Offer,
    Output,
    Refused,
    Sealed,
    Tokens,
    Vectors,
)
from owm.tasks.errors import NoAnswer, SealBroken

__all__ = ["TaskWorker", "WorkerLimits", "WorkerStatistics"]

_log = structlog.get_logger(__name__)

_encode: Final = msgspec.msgpack.Encoder().encode
_offers: Final = msgspec.msgpack.Decoder(Offer)
_sealed: Final = msgspec.msgpack.Decoder(Sealed)
_SKEW_MS: Final = 2 * 3600 * 1000
_REMEMBERED: Final = 65536
_VECTORS_PER_FRAME: Final = 32


class TaskWorker:
    """Serves tasks. Use as ``async with worker.running():`` inside the network's and the engine's own blocks."""

    def __init__(
        self,
        network: Network,
        engine: Engine,
        identity: Identity,
        store: Store,
        network_id: str,
        clock: Clock,
        limits: WorkerLimits = WorkerLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._network = network
        self._engine = engine
        self._identity = identity
        self._store = store
        self._network_id = network_id
        self._clock = clock
        self.limits = limits
        self.protocol = f"/owm/{network_id}/task/1"
        self._slots = trio.CapacityLimiter(limits.slots)
        self._jobs: set[Job] = set()
        self._reserved = 0
        self._seen: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._draining = True
        self._idle = trio.Event()
        self._idle.set()
        self._open = 0
        self._completed = self._failed = self._cancelled = self._refused = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Take offers until the block ends; leaving cancels what still runs (call :meth:`drain` first)."""
        self._draining = False
        most = self.limits.slots + self.limits.queue + 16
        self._network.handle(self.protocol, self._serve, max_streams=most)
        try:
            yield self
        finally:
            self._draining = True
            for job in list(self._jobs):
                job.scope.cancel()

    @property
    def task_types(self) -> tuple[str, ...]:
        """What goes into the manifest."""
        kinds = {model.kind for model in self._engine.models}
        return (("inference",) if "chat" in kinds else ()) + (("embed_data",) if "embedding" in kinds else ())

    def refuse(self) -> None:
        """Take no new task from now on."""
        self._draining = True

    async def drain(self, timeout: float) -> bool:
        """Refuse new tasks and let those that run finish (SRS-NODE-09); False when the time was not enough."""
        self.refuse()
        with trio.move_on_after(timeout):
            while self._open:
                await self._idle.wait()
            return True
        return False

    def statistics(self) -> WorkerStatistics:
        busy = self._slots.borrowed_tokens
        return WorkerStatistics(
            slots=self.limits.slots,
            busy=busy,
            queued=max(0, self._reserved - busy),
            completed=self._completed,
            failed=self._failed,
            cancelled=self._cancelled,
            refused=self._refused,
            draining=self._draining,
        )

    async def _serve(self, stream: Stream) -> None:
        frames = FrameStream(stream, MAX_FRAME + 1024)
        try:
            with trio.fail_after(self.limits.offer_timeout):
                frame = await frames.receive()
            if frame is None:
                return
            offer = _offers.decode(frame)
        except (trio.TooSlowError, NetworkError):
            stream.reset()
            return
        except (msgspec.DecodeError, UnicodeDecodeError, ProtocolViolation):
            self._network.penalise(stream.remote, Penalty.LOW_TOLERANCE, "malformed task offer")
            stream.reset()
            return
        self._open += 1
        self._idle = trio.Event() if self._open == 1 else self._idle
        try:
            await self._take(stream, frames, offer)
        except NetworkError:
            stream.reset()
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _take(self, stream: Stream, frames: FrameStream, offer: Offer) -> None:
        job = self._judge(stream, frames, offer)
        if isinstance(job, Refused):
            self._refused += 1
            with trio.move_on_after(self.limits.write_timeout):
                await frames.send(_encode(job))
            return
        self._reserved += 1
        self._jobs.add(job)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, job)
                await self._work(job)
                nursery.cancel_scope.cancel()
        finally:
            self._jobs.discard(job)

    def _judge(self, stream: Stream, frames: FrameStream, offer: Offer) -> Job | Refused:
        """Everything that is checked before any work, cheapest first; takes no time."""
        now = int(self._clock.time() * 1000)
        seen = (bytes(stream.remote), offer.task)
        if self._draining:
            return Refused(code="draining", message="this worker is stopping")
        if self._reserved >= self.limits.slots + self.limits.queue:
            return Refused(code="busy", message="all slots and the queue are taken")
        if not self._engine.statistics().ready:
            return Refused(code="busy", message="the engine is being restarted")
        if offer.type not in self.task_types:
            return Refused(code="unsupported", message="this worker does not do that type of task")
        if not now - _SKEW_MS < offer.expires < now + 2 * _SKEW_MS:
            return Refused(code="expired", message="the offer's expiry is not near our time: check the clocks")
        if seen in self._seen:
            return Refused(code="replayed", message="this task was offered before")
        binding = Binding(self._network_id, offer.task, stream.remote, self._identity.peer_id, offer.expires)
        try:
            receive_key, send_key = worker_keys(self._identity, offer.key, binding)
            opener = Opener(receive_key, offer.header)
            plain = opener.open(offer.sealed)
        except SealBroken as error:
            self._network.penalise(stream.remote, Penalty.MID_TOLERANCE, "a task's seal is broken")
            return Refused(code="sealed", message=str(error))
        try:
            sealed = _sealed.decode(plain)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Refused(code="invalid", message=str(error)[:512])
        body = sealed.body
        if type(body).__struct_config__.tag != offer.type:
            return Refused(code="invalid", message="the sealed task is of another type than the offer")
        kind = "chat" if isinstance(body, InferenceTask) else "embedding"
        if body.model and not any(m.id == body.model and m.kind == kind for m in self._engine.models):
            return Refused(code="unsupported", message="this worker does not serve that model")
        self._seen[seen] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        content = input_content(sealed.salt, body)
        return Job(offer, binding, body, content, sealed.salt, frames, Sealer(send_key), opener, self._clock.time())

    async def _watch(self, job: Job) -> None:
        """Notice that the requester left, or that it signed."""
        try:
            frame = await job.frames.receive()
            if frame is not None and job.receipt_id is not None:
                signature = job.opener.open(frame)
                job.opener.end()
                if countersigned(job.receipt_id, job.binding.requester, signature):
                    job.countersignature = signature
                    return
            if frame is not None:
                raise ProtocolViolation("not a countersignature")
        except NetworkError:
            pass  # it went away, which is how a task is cancelled
        except (ProtocolViolation, SealBroken) as error:
            self._network.penalise(job.binding.requester, Penalty.LOW_TOLERANCE, str(error))
        finally:
            job.gone = job.countersignature is None
            job.answered.set()
            if job.gone:
                job.scope.cancel()

    async def _work(self, job: Job) -> None:
        limit = min(self.limits.task_timeout, job.offer.timeout_ms / 1000)
        state, error = "failed", "engine"
        receipt: TaskReceipt | None = None
        try:
            with job.scope:
                await self._store.log_task(job.entry("accepted", self._clock.time()), job.input)
                with trio.move_on_after(limit) as timer:
                    await self._write(job, _encode(Accepted(header=job.sealer.header)))
                    async with self._slots:
                        job.started = self._clock.time()
                        receipt = await self._execute(job)
                if timer.cancelled_caught:
                    await self._fail(job, "timeout", f"not finished within {limit:.0f} s")
                    error = "timeout"
            if job.scope.cancelled_caught:
                state, error = "cancelled", "the requester left" if job.gone else "this worker stopped"
        except UsageError as cause:
            error = f"invalid: {cause}"
            await self._fail(job, "too_long" if isinstance(cause, PromptTooLong) else "invalid", str(cause))
        except NetworkError as cause:
            state, error = "cancelled", str(cause)
        except OwmError as cause:
            error = f"engine: {cause}"
            _log.warning("a task failed", task=job.offer.task.hex(), error=str(cause))
            await self._fail(job, "engine", str(cause))
        finally:
            self._reserved -= 1
        if receipt is not None:
            await self._deliver(job, receipt)
            return
        self._cancelled += state == "cancelled"
        self._failed += state == "failed"
        if state == "cancelled":
            job.frames.stream.reset()
        with trio.CancelScope(shield=True):
            await self._store.log_task(job.entry(state, self._clock.time(), error))

    async def _execute(self, job: Job) -> TaskReceipt:
        if isinstance(job.body, EmbedTask):
            return await self._embed(job, job.body)
        return await self._generate(job, job.body)

    async def _generate(self, job: Job, body: InferenceTask) -> TaskReceipt:
        request = GenerateRequest(
            messages=tuple(ChatMessage(message.role, message.content) for message in body.messages),
            model=body.model,
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
        )
        ids: list[int] = []
        logprobs: list[int] = []
        texts: list[str] = []
        done: Done | None = None
        async with self._engine.generate(request) as items:
            async for item in items:
                if isinstance(item, Done):
                    done = item
                    break
                logprob = packed_logprob(item.logprob)
                ids.append(item.id)
                logprobs.append(logprob)
                texts.append(item.text)
                await self._send(job, Tokens((item.text,), (item.id,), (logprob,)))
        if done is None:
            raise NoAnswer("the engine ended without finishing its answer")
        text = "".join(texts)
        output = answer_content(ids, logprobs, done.template_sha256, body.seed, done.model_sha256, text)
        count = min(done.completion_tokens, most_tokens(body, len(ids), len(text.encode())))
        receipt = await self._receipt(job, output.hash, done.model_sha256, done.prompt_tokens, count)
        await self._finish(job, receipt, output, done.finish, done.model, done.template_sha256)
        return receipt

    async def _embed(self, job: Job, body: EmbedTask) -> TaskReceipt:
        result = await self._engine.embed(body.texts, body.model)
        packed = [struct.pack(f"<{len(vector)}f", *vector) for vector in result.vectors]
        for start in range(0, len(packed), _VECTORS_PER_FRAME):
            await self._send(job, Vectors(tuple(packed[start : start + _VECTORS_PER_FRAME])))
        output = vectors_content(packed, result.model_sha256)
        receipt = await self._receipt(job, output.hash, result.model_sha256, result.prompt_tokens, 0)
        await self._finish(job, receipt, output, "stop", result.model, "")
        return receipt

    async def _receipt(self, job: Job, output: bytes, model: str, prompt: int, completion: int) -> TaskReceipt:
        now = self._clock.time()
        started = job.started if job.started is not None else now
        return TaskReceipt(
            sequence=await self._store.next_sequence(TaskReceipt.TYPE, now),
            task=job.offer.task.hex(),
            task_type=job.offer.type,
            requester=bytes(job.binding.requester),
            worker=bytes(job.binding.worker),
            input_hash=job.input.hash,
            output_hash=output,
            model_sha256=model,
            prompt_tokens=prompt,
            completion_tokens=completion,
            seed=job.body.seed if isinstance(job.body, InferenceTask) else 0,
            queued_ms=max(0, round((started - job.accepted) * 1000)),
            run_ms=max(0, round((now - started) * 1000)),
        )

    async def _finish(
        self, job: Job, receipt: TaskReceipt, output: Content, finish: str, model: str, template: str
    ) -> None:
        """Sign, write down, and only then say so."""
        signed = sign_record(self._identity, receipt, self._network_id)
        job.receipt_id = signed.id
        await self._store.log_task(job.entry("proved", self._clock.time(), signed=signed), output)
        finished = Finished(finish=finish, model=model, template_sha256=template, receipt=signed.envelope)
        await self._write(job, job.sealer.seal(_encode(finished), last=True))

    async def _deliver(self, job: Job, receipt: TaskReceipt) -> None:
        """The output is out; wait a little for the requester's signature, holding no slot."""
        self._completed += 1
        with trio.move_on_after(self.limits.countersign_timeout):
            await job.answered.wait()
        if job.countersignature is not None:
            with trio.CancelScope(shield=True):
                entry = await self._store.task(job.offer.task.hex(), "worker")
                if entry is not None:
                    entry = msgspec.structs.replace(entry, state="done", countersignature=job.countersignature)
                    await self._store.log_task(entry)

    async def _send(self, job: Job, output: Output) -> None:
        await self._write(job, job.sealer.seal(_encode(output)))

    async def _write(self, job: Job, frame: bytes) -> None:
        """Send, within the time that a requester may take nothing; then it counts as gone."""
        job.torn = True
        with trio.move_on_after(self.limits.write_timeout) as scope:
            await job.frames.send(frame)
            job.torn = False
        if scope.cancelled_caught:
            job.gone = True
            job.scope.cancel()
            await trio.lowlevel.checkpoint()

    async def _fail(self, job: Job, code: Literal["invalid", "too_long", "timeout", "engine"], message: str) -> None:
        if job.torn:
            job.frames.stream.reset()
            return
        failed = Failed(code=code, message=message[:512])
        try:
            with trio.move_on_after(self.limits.write_timeout):
                await job.frames.send(job.sealer.seal(_encode(failed), last=True))
        except NetworkError as error:
            _log.debug("a failure could not be reported", error=str(error))
