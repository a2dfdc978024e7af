"""The task log's lines of what we asked others for: one for each attempt, from the moment that it is dispatched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from owm.identity import PeerId
from owm.records import TaskReceipt
from owm.store import Content, TaskEntry
from owm.tasks._attempt import Proof
from owm.tasks._receipts import input_content
from owm.tasks._types import Body

__all__ = ["RequestLine"]

_NOTHING: Final = Content(b"", b"")


@dataclass(slots=True)
class RequestLine:
    """What is known of a task's present attempt."""

    type: str
    created: float  #: unix seconds at which the task was asked for; of later attempts, at which they began
    id: str = ""
    job: str = ""  #: the first attempt's id
    attempt: int = 1
    worker: PeerId | None = None
    salt: bytes = b""
    input: Content = _NOTHING
    started: float | None = None

    def begin(self, task: bytes, worker: PeerId, salt: bytes, body: Body, now: float) -> None:
        """Another attempt; each has an id and a salt of its own, so that no worker learns whom else we asked."""
        if self.job:
            self.attempt, self.created = self.attempt + 1, now
        self.id, self.worker, self.salt = task.hex(), worker, salt
        self.job = self.job or self.id
        self.input = input_content(salt, body)
        self.started = None

    def entry(self, state: str, finished: float | None, error: str = "", proof: Proof | None = None) -> TaskEntry:
        """The line as it is to be written now."""
        receipt = proof.receipt.record if proof else None
        details = receipt if isinstance(receipt, TaskReceipt) else None
        return TaskEntry(
            id=self.id,
            role="requester",
            type=self.type,
            peer=bytes(self.worker) if self.worker else b"",
            state=state,
            input_hash=self.input.hash,
            output_hash=details.output_hash if details else b"",
            created=self.created,
            started=self.started,
            finished=finished,
            prompt_tokens=details.prompt_tokens if details else 0,
            completion_tokens=details.completion_tokens if details else 0,
            payment="due" if details and details.price_msat else "none",
            error=error,
            receipt=proof.receipt.envelope if proof else None,
            countersignature=proof.signature if proof else None,
            salt=self.salt,
            job=self.job,
            attempt=self.attempt,
        )
