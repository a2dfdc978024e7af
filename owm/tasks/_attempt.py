"""One attempt of a task at one worker: offer, open what comes back, check the receipt, countersign."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from owm.clock import Clock
from owm.directory import Peer
from owm.identity import Identity
from owm.net import FrameStream, Network
from owm.net.errors import NetworkError, ProtocolViolation, StreamReset
from owm.records import SignedRecord
from owm.store import Content
from owm.tasks._core_life import TaskEvent, TaskLife
from owm.tasks._core_scheduler import Patience
from owm.tasks._core_sealing import Binding, Opener, Sealer, requester_keys
from owm.tasks._receipts import (
    answer_content,
    check_receipt,
    countersign,
    most_tokens,
    open_receipt,
    vectors_content,
)
from owm.tasks._types import (
    MAX_FRAME,
    Accepted,
    Answer,
    EmbedTask,
    Failed,
    Finished,
    InferenceTask,
    Offer,
    Output,
    Sealed,
    Tokens,
    Vectors,
)
from owm.tasks.errors import Impossible, SealBroken, TaskFailed, TaskRefused, WorkerFault

__all__ = ["Attempt", "Proof"]

_encode: Final = msgspec.msgpack.Encoder().encode
_answers: Final = msgspec.msgpack.Decoder(Answer)
_outputs: Final = msgspec.msgpack.Decoder(Output)
_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 10.0
_SLACK_TOKENS: Final = 8  # an engine may count its end-of-text token or not


@dataclass(frozen=True, slots=True)
class Proof:
    """What a worker finished with, verified."""

    finished: Finished
    receipt: SignedRecord
    signature: bytes  #: ours, of the receipt's id
    output: Content  #: what the receipt's output hash is the hash of


@dataclass(slots=True)
class Attempt:
    """The requester's side of one stream.

    Args:
        task: 16 bytes; fresh for each attempt, so that no worker learns whom else we asked.
        secret: 32 fresh bytes for the ephemeral key.
        salt: 32 fresh bytes for the input's hash.
        remaining: seconds until the whole task must be done.
    """

    network: Network
    identity: Identity
    network_id: str
    clock: Clock
    worker: Peer
    life: TaskLife
    body: InferenceTask | EmbedTask
    task: bytes
    secret: bytes
    salt: bytes
    remaining: float
    latency: float | None = None  #: seconds to the first output, once it came
    vectors: list[bytes] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _logprobs: list[int] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _size: int = 0  # bytes of text

    async def run(self, accepted: Callable[[], Awaitable[None]], output: Callable[[Tokens], Awaitable[None]]) -> Proof:
        """Do it all; cancellation resets the stream, which cancels the work at the worker.

        Raises:
            TaskRefused: the worker did not take it.
            Impossible: it says that nobody could do it.
            TaskFailed, NetworkError, WorkerFault, SealBroken, ProtocolViolation: it went wrong with this worker.
        """
        stream = None
        try:
            with trio.fail_after(_CONNECT_SECONDS):
                await self.network.connect(self.worker.id, self.worker.manifest.addresses)
                stream = await self.network.open_stream(self.worker.id, f"/owm/{self.network_id}/task/1")
            frames = FrameStream(stream, MAX_FRAME + 1024)
            return await self._converse(frames, accepted, output)
        except trio.TooSlowError as error:
            raise TaskFailed("the worker did not answer in time") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkerFault(f"the worker sent a malformed message: {error}") from error
        finally:
            if stream is not None:
                stream.reset()

    async def _converse(
        self,
        frames: FrameStream,
        accepted: Callable[[], Awaitable[None]],
        output: Callable[[Tokens], Awaitable[None]],
    ) -> Proof:
        expires = int((self.clock.time() + self.remaining) * 1000)
        binding = Binding(self.network_id, self.task, self.identity.peer_id, self.worker.id, expires)
        public, send_key, receive_key = requester_keys(self.secret, binding)
        sealer = Sealer(send_key)
        offer = Offer(
            task=self.task,
            type=str(type(self.body).__struct_config__.tag),
            expires=expires,
            timeout_ms=max(1, min(3_600_000, int(self.remaining * 1000))),
            key=public,
            header=sealer.header,
            sealed=sealer.seal(_encode(Sealed(salt=self.salt, body=self.body))),
        )
        started = self.clock.monotonic()
        with trio.fail_after(_ANSWER_SECONDS):
            await frames.send(_encode(offer))
            answer = _answers.decode(await _next(frames))
        if not isinstance(answer, Accepted):
            if answer.code == "invalid":
                raise Impossible("refused", answer.message)
            raise TaskRefused(answer.code, answer.message)
        opener = Opener(receive_key, answer.header)
        self.life.apply(TaskEvent.ACCEPT)
        await accepted()
        patience = Patience()
        last = self.clock.monotonic()
        while True:
            with trio.fail_after(patience.next_deadline(self.worker.latency)):
                frame = await _next(frames)
            message = _outputs.decode(opener.open(frame))
            now = self.clock.monotonic()
            if self.latency is None:
                self.latency = now - started
            else:
                patience.note(now - last)
            if isinstance(message, Failed):
                if message.code in ("invalid", "too_long"):
                    raise Impossible("too_long" if message.code == "too_long" else "refused", message.message)
                raise TaskFailed(f"the worker failed ({message.code}): {message.message}")
            if isinstance(message, Finished):
                opener.end()
                proof = self._verify(message, binding)
                await self._countersign(frames, sealer.seal(proof.signature, last=True))
                return proof
            self._collect(message)
            if isinstance(message, Tokens):
                await output(message)
            last = self.clock.monotonic()  # the time that our own reader took is not the worker's

    def _collect(self, message: Tokens | Vectors) -> None:
        """Keep what will be hashed; refuse more, or other, than was asked for."""
        if isinstance(message, Tokens) and isinstance(self.body, InferenceTask):
            if not len(message.ids) == len(message.logprobs) == len(message.text):
                raise WorkerFault("the worker's tokens do not match up")
            self._ids += message.ids
            self._logprobs += message.logprobs
            self._texts += message.text
            self._size += sum(len(text.encode()) for text in message.text)
            if len(self._ids) > self.body.max_tokens + _SLACK_TOKENS:
                raise WorkerFault("the worker sent more tokens than were asked for")
        elif isinstance(message, Vectors) and isinstance(self.body, EmbedTask):
            self.vectors += message.vectors
            if len(self.vectors) > len(self.body.texts) or any(len(v) % 4 or not v for v in message.vectors):
                raise WorkerFault("the worker's vectors do not match the texts")
        else:
            raise WorkerFault("the worker sent another kind of output than was asked for")
        if self.life.state.value in ("accepted", "running"):
            self.life.apply(TaskEvent.OUTPUT)

    def _verify(self, finished: Finished, binding: Binding) -> Proof:
        self.life.apply(TaskEvent.PROOF)
        try:
            signed, claimed = open_receipt(finished.receipt, binding, self.clock.time())
            if isinstance(self.body, EmbedTask):
                if len(self.vectors) != len(self.body.texts):
                    raise WorkerFault("the worker left out vectors")
                output = vectors_content(self.vectors, claimed.model_sha256)
            else:
                template, seed, text = finished.template_sha256, self.body.seed, "".join(self._texts)
                output = answer_content(self._ids, self._logprobs, template, seed, claimed.model_sha256, text)
                if claimed.completion_tokens > most_tokens(self.body, len(self._ids), self._size):
                    raise WorkerFault("the worker's receipt counts more tokens than it sent, or than were asked for")
            served = {model.sha256 for model in self.worker.manifest.models}
            if claimed.model_sha256 not in served:
                raise WorkerFault("the worker used a model that its manifest does not list")
            check_receipt(claimed, binding, self.body, self.salt, output.hash)
        except WorkerFault:
            self.life.apply(TaskEvent.REJECT)
            raise
        self.life.apply(TaskEvent.VERIFIED)
        return Proof(finished, signed, countersign(self.identity, signed), output)

    async def _countersign(self, frames: FrameStream, frame: bytes) -> None:
        """Send our signature and wait for the worker to close: a reset from us could overtake it."""
        with trio.move_on_after(_ANSWER_SECONDS):
            try:
                await frames.send(frame)
                await frames.stream.close_write()
                await frames.receive()
            except (NetworkError, ProtocolViolation):
                return  # the answer is whole and proved; how the stream ends does not matter


def unpack(vectors: list[bytes]) -> tuple[tuple[float, ...], ...]:
    """float32, little endian, to floats."""
    return tuple(struct.unpack(f"<{len(vector) // 4}f", vector) for vector in vectors)


async def _next(frames: FrameStream) -> bytes:
    frame = await frames.receive()
    if frame is None:
        raise StreamReset("the worker ended the stream too early")
    return frame


FAULTS: Final = (WorkerFault, SealBroken, ProtocolViolation)
