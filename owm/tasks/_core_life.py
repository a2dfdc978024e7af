"""A task's life, as its requester sees it::

                       +------------------- re-queue (refused, failed, timed out) ------------------+
                       v                                                                            |
    start --> QUEUED --offer--> OFFERED --accept--> ACCEPTED --output--> RUNNING --proof--> PROVED  |
                |                  |                    |                    |                 |    |
                |                  +--------------------+--------------------+---- fault ------+----+
                |                                                                              |
                +-- no worker, attempts used up --> FAILED                     receipt verified v
                                                                 PAID <--pay-- DONE
    any state before DONE --cancel--> CANCELLED
    PROVED --receipt wrong--> REJECTED --re-queue--> QUEUED, or FAILED

A worker that finishes without output (an answer of no tokens) goes from ACCEPTED to PROVED.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from owm.tasks.errors import InvalidTransition

__all__ = ["TaskEvent", "TaskLife", "TaskState"]


class TaskState(Enum):
    """Where a task is; the value goes into the task log."""

    QUEUED = "queued"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    RUNNING = "running"
    PROVED = "proved"
    DONE = "done"  #: the proof was accepted
    REJECTED = "rejected"  #: the proof was not
    PAID = "paid"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskEvent(Enum):
    """What happens to a task."""

    OFFER = "offer"
    ACCEPT = "accept"
    OUTPUT = "output"
    PROOF = "proof"
    VERIFIED = "verified"
    REJECT = "reject"
    REQUEUE = "requeue"
    GIVE_UP = "give up"
    PAY = "pay"
    CANCEL = "cancel"


_S, _E = TaskState, TaskEvent
TRANSITIONS: Final = {
    (_S.QUEUED, _E.OFFER): _S.OFFERED,
    (_S.OFFERED, _E.ACCEPT): _S.ACCEPTED,
    (_S.ACCEPTED, _E.OUTPUT): _S.RUNNING,
    (_S.RUNNING, _E.OUTPUT): _S.RUNNING,
    (_S.ACCEPTED, _E.PROOF): _S.PROVED,
    (_S.RUNNING, _E.PROOF): _S.PROVED,
    (_S.PROVED, _E.VERIFIED): _S.DONE,
    (_S.PROVED, _E.REJECT): _S.REJECTED,
    (_S.DONE, _E.PAY): _S.PAID,
    **{(state, _E.REQUEUE): _S.QUEUED for state in (_S.OFFERED, _S.ACCEPTED, _S.RUNNING, _S.REJECTED)},
    **{
        (state, _E.GIVE_UP): _S.FAILED
        for state in (_S.QUEUED, _S.OFFERED, _S.ACCEPTED, _S.RUNNING, _S.PROVED, _S.REJECTED)
    },
    **{
        (state, _E.CANCEL): _S.CANCELLED
        for state in (_S.QUEUED, _S.OFFERED, _S.ACCEPTED, _S.RUNNING, _S.PROVED, _S.REJECTED)
    },
}


class TaskLife:
    """One task's state and how often it was offered.

    Args:
        max_attempts: accepted offers and faults after which it is given up; refusals are not counted.
    """

    def __init__(self, max_attempts: int = 4) -> None:
        self.state = TaskState.QUEUED
        self.attempts = 0
        self._max_attempts = max_attempts

    def apply(self, event: TaskEvent) -> TaskState:
        """Move on; raises InvalidTransition, and changes nothing, where the diagram has no such arrow."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            raise InvalidTransition(f"a task that is {self.state.value} cannot {event.value}")
        if event is TaskEvent.OFFER:
            self.attempts += 1
        self.state = target
        return target

    def refused(self) -> None:
        """The worker was busy: back to the queue, and it was no attempt."""
        self.apply(TaskEvent.REQUEUE)
        self.attempts -= 1

    @property
    def may_retry(self) -> bool:
        return self.attempts < self._max_attempts

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be computed."""
        return self.state in (TaskState.DONE, TaskState.PAID, TaskState.FAILED, TaskState.CANCELLED)
