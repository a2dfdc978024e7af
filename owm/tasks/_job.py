"""One task at a worker, and what a worker takes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from owm.net import FrameStream
from owm.records import SignedRecord, TaskReceipt
from owm.store import Content, TaskEntry
from owm.tasks._core_sealing import Binding, Opener, Sealer
from owm.tasks._types import Body, Offer

__all__ = ["Job", "WorkerLimits", "WorkerStatistics"]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker takes on."""

    slots: int = 4  #: tasks that run at once
    queue: int = 8  #: accepted tasks that may wait for a slot
    task_timeout: float = 120.0  #: seconds for one task, however long the requester would wait
    offer_timeout: float = 10.0  #: seconds until an opened stream must have brought its offer
    write_timeout: float = 10.0  #: seconds a requester may take nothing before its task is dropped
    countersign_timeout: float = 10.0  #: seconds to wait for the requester's signature


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """The present load, and counters since start."""

    slots: int
    busy: int
    queued: int
    completed: int
    failed: int
    cancelled: int
    refused: int
    draining: bool


@dataclass(slots=True, eq=False)
class Job:
    """One task at work."""

    offer: Offer
    binding: Binding
    body: Body
    input: Content
    salt: bytes
    frames: FrameStream
    sealer: Sealer
    opener: Opener
    accepted: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    started: float | None = None
    receipt_id: bytes | None = None
    countersignature: bytes | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    gone: bool = False  #: the requester left
    torn: bool = False  #: a frame may be half sent: nothing can follow it

    def entry(self, state: str, now: float, error: str = "", signed: SignedRecord | None = None) -> TaskEntry:
        """What the task log is to say; ``signed`` is the receipt, once there is one."""
        receipt = signed.record if signed is not None and isinstance(signed.record, TaskReceipt) else None
        return TaskEntry(
            id=self.offer.task.hex(),
            role="worker",
            type=self.offer.type,
            peer=bytes(self.binding.requester),
            state=state,
            input_hash=self.input.hash,
            output_hash=receipt.output_hash if receipt else b"",
            created=self.accepted,
            started=self.started,
            finished=None if state == "accepted" else now,
            prompt_tokens=receipt.prompt_tokens if receipt else 0,
            completion_tokens=receipt.completion_tokens if receipt else 0,
            payment="due" if receipt and receipt.price_msat else "none",
            error=error,
            receipt=signed.envelope if signed is not None else None,
            salt=self.salt,
        )
