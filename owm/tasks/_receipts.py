"""Receipts: what was done for whom, checkable by both sides and by auditors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from owm.identity import Identity, PeerId, verify
from owm.records import SignedRecord, TaskReceipt, open_record
from owm.records.errors import RecordError
from owm.store import Content
from owm.tasks._core_sealing import Binding
from owm.tasks._types import LOGPROB_SCALE, Body, InferenceTask
from owm.tasks.errors import WorkerFault

__all__ = [
    "answer_content",
    "answer_hash",
    "check_receipt",
    "countersign",
    "countersigned",
    "input_body",
    "input_content",
    "input_hash",
    "most_tokens",
    "open_receipt",
    "packed_logprob",
    "unpacked_logprob",
    "vectors_content",
    "vectors_hash",
]

_encode: Final = msgspec.msgpack.Encoder().encode
_DOMAIN: Final = b"owm-receipt-countersignature/1:"
_INPUT: Final = b"owm-task-input/1"
_UNKNOWN: Final = -(2**31)
_TEXTLESS: Final = 8  # tokens of an answer that may have no text: its end, a character cut short, marks of the template


def input_content(salt: bytes, body: Body) -> Content:
    """The task's salt and its canonical body, and their hash."""
    return _content(_INPUT + salt + _encode(body))


def input_body(content: Content) -> Body:
    """What was asked, from a kept input; raises msgspec.DecodeError."""
    body: Body = msgspec.msgpack.decode(content.data[len(_INPUT) + 32 :], type=Body)
    return body


def answer_content(
    ids: Sequence[int], logprobs: Sequence[int], template: str, seed: int, model_sha256: str, text: str = ""
) -> Content:
    """What makes an answer checkable, and its hash; log-probabilities are integers, in 1/1024 nat."""
    return _content(b"owm-task-answer/1" + _encode((ids, logprobs, template, seed, model_sha256)), text)


def vectors_content(vectors: Sequence[bytes], model_sha256: str) -> Content:
    """Embeddings as they travelled (float32, little endian), and their hash."""
    return _content(b"owm-task-vectors/1" + _encode((vectors, model_sha256)))


def _content(data: bytes, text: str = "") -> Content:
    return Content(hashlib.sha256(data).digest(), data, text)


def input_hash(salt: bytes, body: Body) -> bytes:
    """SHA-256 over the task's salt and its canonical body: says nothing to who does not know both."""
    return input_content(salt, body).hash


def answer_hash(ids: Sequence[int], logprobs: Sequence[int], template: str, seed: int, model_sha256: str) -> bytes:
    """SHA-256 of what makes an answer checkable."""
    return answer_content(ids, logprobs, template, seed, model_sha256).hash


def vectors_hash(vectors: Sequence[bytes], model_sha256: str) -> bytes:
    """SHA-256 over embeddings."""
    return vectors_content(vectors, model_sha256).hash


def packed_logprob(logprob: float) -> int:
    """As it travels and is hashed: in 1/1024 nat; nan, which stands for unknown, is -2**31."""
    return _UNKNOWN if math.isnan(logprob) else max(_UNKNOWN + 1, round(max(-1e9, logprob) * LOGPROB_SCALE))


def unpacked_logprob(packed: int) -> float | None:
    """In nats; None where the engine did not say."""
    return None if packed <= _UNKNOWN else packed / LOGPROB_SCALE


def most_tokens(body: InferenceTask, told: int, size: int) -> int:
    """The most tokens that a receipt may count; a worker counts no more, whatever its engine says.

    Every token is told, and has at least a byte of text but for a few: or else whoever is paid by the token could
    count tokens that say nothing. Text that a stop sequence cut off is not seen.

    Args:
        told: tokens that were sent.
        size: bytes of text that were sent.
    """
    cut = max((len(text.encode()) for text in body.stop), default=0)
    return min(body.max_tokens, told + 1, size + cut + _TEXTLESS)


def open_receipt(envelope: bytes, binding: Binding, now: float) -> tuple[SignedRecord, TaskReceipt]:
    """Open the envelope of a worker's receipt; raises WorkerFault unless it is a receipt signed by this worker.

    Args:
        now: unix seconds.
    """
    try:
        signed = open_record(envelope, binding.network_id, now, issuer=binding.worker)
    except RecordError as error:
        raise WorkerFault(f"the worker's receipt is not valid: {error}") from error
    if not isinstance(signed.record, TaskReceipt):
        raise WorkerFault("the worker sent another record in place of a receipt")
    return signed, signed.record


def check_receipt(receipt: TaskReceipt, binding: Binding, body: Body, salt: bytes, output: bytes) -> None:
    """Compare a receipt with what we asked for and what we got; raises WorkerFault when it does not add up.

    Args:
        output: the hash that we computed over what arrived.
    """
    expected = (
        ("task", receipt.task, binding.task.hex()),
        ("type", receipt.task_type, type(body).__struct_config__.tag),
        ("requester", receipt.requester, bytes(binding.requester)),
        ("worker", receipt.worker, bytes(binding.worker)),
        ("input", receipt.input_hash, input_hash(salt, body)),
        ("output", receipt.output_hash, output),
        ("seed", receipt.seed, body.seed if isinstance(body, InferenceTask) else 0),
    )
    for name, found, wanted in expected:
        if found != wanted:
            raise WorkerFault(f"the worker's receipt names another {name}")
    if min(receipt.prompt_tokens, receipt.completion_tokens, receipt.queued_ms, receipt.run_ms, receipt.price_msat) < 0:
        raise WorkerFault("the worker's receipt has a negative amount")


def countersign(identity: Identity, receipt: SignedRecord) -> bytes:
    """The requester's signature that it got what the receipt says."""
    return identity.sign(_DOMAIN + receipt.id)


def countersigned(receipt_id: bytes, requester: PeerId, signature: bytes) -> bool:
    """Whether ``signature`` is the requester's for the receipt of that id."""
    key = requester.public_key
    return key is not None and verify(key, _DOMAIN + receipt_id, signature)
