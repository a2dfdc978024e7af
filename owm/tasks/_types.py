"""Task types and the messages between requester and worker; decoding checks every bound (SRS-NODE-07)."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "MAX_FRAME",
    "TASK_TYPES",
    "Accepted",
    "Body",
    "EmbedTask",
    "Failed",
    "Finished",
    "InferenceTask",
    "Message",
    "Offer",
    "Output",
    "Priority",
    "Refused",
    "TaskRules",
    "Tokens",
    "Vectors",
]

MAX_FRAME: Final = 1 << 20  #: bytes of one frame, either way
_MAX_TEXT: Final = 256 * 1024
LOGPROB_SCALE: Final = 1024  #: log-probabilities travel and are hashed as integers, in 1/1024 nat


class Priority(IntEnum):
    """Lower goes first (SRS-SCHED-03)."""

    FL_ROUND = 0
    INFERENCE = 1
    DATA_INGEST = 2


class TaskRules(msgspec.Struct, frozen=True):
    """What holds for a type of task (SRS 4.3.1)."""

    min_tier: str
    priority: Priority


TASK_TYPES: Final = {
    "fl_round": TaskRules("t1", Priority.FL_ROUND),
    "gradient_agg": TaskRules("t2", Priority.FL_ROUND),
    "inference": TaskRules("t1", Priority.INFERENCE),
    "embed_data": TaskRules("t1", Priority.INFERENCE),
    "audit_repo": TaskRules("t1", Priority.DATA_INGEST),
    "data_ingest": TaskRules("t2", Priority.DATA_INGEST),
}

_Name = Annotated[str, Meta(max_length=128)]
_Text = Annotated[str, Meta(max_length=_MAX_TEXT)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    pass


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: _Text


class InferenceTask(_Wire, frozen=True, kw_only=True, tag="inference"):
    """Generate an answer."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=256)]
    model: _Name = ""  #: empty for the worker's chat model
    max_tokens: Annotated[int, Meta(ge=1, le=32768)] = 256
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=8)] = ()


class EmbedTask(_Wire, frozen=True, kw_only=True, tag="embed_data"):
    """Embed texts, in their order."""

    texts: Annotated[tuple[_Text, ...], Meta(min_length=1, max_length=256)]
    model: _Name = ""


Body = InferenceTask | EmbedTask


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the offer's sealed frame holds."""

    salt: Annotated[bytes, Meta(min_length=32, max_length=32)]  #: for the input's hash
    body: Body


class Offer(_Wire, frozen=True, kw_only=True, tag="offer"):
    """Requester to worker, in the open: enough to derive keys and to refuse without opening anything."""

    task: Annotated[bytes, Meta(min_length=16, max_length=16)]
    type: _Name
    expires: Annotated[int, Meta(ge=0, lt=2**53)]  #: unix milliseconds, by the requester's clock
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)]  #: for the whole task, by the worker's clock
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]  #: ephemeral X25519
    header: Annotated[bytes, Meta(min_length=24, max_length=24)]
    sealed: Annotated[bytes, Meta(max_length=MAX_FRAME)]


class Accepted(_Wire, frozen=True, kw_only=True, tag="accepted"):
    """Worker to requester: it will run; sealed frames follow."""

    header: Annotated[bytes, Meta(min_length=24, max_length=24)]


class Refused(_Wire, frozen=True, kw_only=True, tag="refused"):
    """Worker to requester: it will not run."""

    code: Literal["busy", "draining", "expired", "replayed", "unsupported", "invalid", "sealed"]
    message: Annotated[str, Meta(max_length=512)] = ""


Answer = Accepted | Refused


class Tokens(_Wire, frozen=True, tag="tokens"):
    """One or more pieces of an answer."""

    text: tuple[Annotated[str, Meta(max_length=1024)], ...]
    ids: tuple[int, ...]  #: -1 where the engine does not say
    logprobs: tuple[int, ...]  #: in 1/1024 nat; -2**31 where the engine does not say


class Vectors(_Wire, frozen=True, tag="vectors"):
    """Some of the embeddings: float32, little endian, one byte string per text."""

    vectors: Annotated[tuple[Annotated[bytes, Meta(max_length=65536)], ...], Meta(max_length=256)]


class Finished(_Wire, frozen=True, kw_only=True, tag="finished"):
    """The worker is done; the receipt says so under its signature."""

    finish: _Name
    model: _Name
    template_sha256: Annotated[str, Meta(max_length=64)]
    receipt: Annotated[bytes, Meta(max_length=8192)]


class Failed(_Wire, frozen=True, kw_only=True, tag="failed"):
    """The worker could not do it. ``invalid`` and ``too_long`` say that no worker like it could."""

    code: Literal["invalid", "too_long", "timeout", "engine", "stopping"]
    message: Annotated[str, Meta(max_length=512)] = ""


Output = Tokens | Vectors | Finished | Failed
