"""What a requester tells whoever asked, in order: Started, tokens, perhaps Restart and all over again, Completed."""

from __future__ import annotations

from dataclasses import dataclass

from owm.identity import PeerId
from owm.records import SignedRecord, TaskReceipt

__all__ = ["Completed", "Embedded", "Event", "Restart", "Started", "TokenEvent"]


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took the task. Comes again when another worker takes over."""

    task: str  #: task id, hex
    worker: PeerId
    attempt: int  #: 1 for the first


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """The next token of the answer."""

    text: str  #: may be empty while a character is incomplete
    id: int  #: -1 where the worker's engine does not say
    logprob: float | None  #: natural logarithm; None where the worker's engine does not say


@dataclass(frozen=True, slots=True)
class Restart:
    """The worker was lost after it had begun: forget every token so far; the whole answer comes anew."""

    reason: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer is whole, and the worker's receipt for it has been verified."""

    task: str
    worker: PeerId
    finish: str  #: "stop" or "length"
    model: str
    receipt: SignedRecord
    attempts: int

    @property
    def details(self) -> TaskReceipt:
        """The receipt itself: token counts, times, hashes."""
        record = self.receipt.record
        assert isinstance(record, TaskReceipt)
        return record


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings, one per text, in order."""

    vectors: tuple[tuple[float, ...], ...]
    completed: Completed


Event = Started | TokenEvent | Restart | Completed
