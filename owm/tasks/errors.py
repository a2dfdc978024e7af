"""What can go wrong with a task, split by what the caller can do about it."""

from __future__ import annotations

from typing import Literal

from owm.errors import OwmError, PeerError, TemporaryError, UsageError

__all__ = [
    "ConsumerTooSlow",
    "Impossible",
    "InvalidTask",
    "InvalidTransition",
    "NoAnswer",
    "NoWorkers",
    "SealBroken",
    "TaskFailed",
    "TaskRefused",
    "TaskTimedOut",
    "TooManyTasks",
    "WorkerFault",
]


class InvalidTask(UsageError):
    """The task does not match its schema, or several workers agree that it cannot be done as asked.

    ``code`` says which: ``schema`` (the message says what is wrong), or by the workers' word ``too_long`` (the prompt
    leaves no room in their contexts) or ``refused``. The message never holds a worker's own words.
    """

    def __init__(self, message: str, code: Literal["schema", "too_long", "refused"] = "schema") -> None:
        super().__init__(message)
        self.code = code


class Impossible(PeerError):
    """One worker says that nobody could do the task. It may be small, or lie: believed when a second one agrees."""

    def __init__(self, code: Literal["too_long", "refused"], message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidTransition(UsageError):
    """A task was told to do what its state does not allow: a bug."""


class NoAnswer(OwmError):
    """Our engine ended an answer without saying so: a bug in the engine."""


class NoWorkers(TemporaryError):
    """No worker that can do the task is left; try again later."""


class TooManyTasks(TemporaryError):
    """Our own queue of tasks is full; try again later."""


class ConsumerTooSlow(TemporaryError):
    """Whoever asked stopped reading the answer; the work was cancelled to free the worker."""


class TaskFailed(TemporaryError):
    """The task could not be finished: its time was up, or each worker that tried it failed."""


class TaskTimedOut(TaskFailed):
    """The task's time was up, waiting and all attempts together."""


class TaskRefused(TemporaryError):
    """A worker did not take the task; ``code`` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerFault(PeerError):
    """A worker sent what does not add up: a wrong receipt, a broken frame, more than was asked for."""


class SealBroken(PeerError):
    """A sealed frame is not what the other side sent, or not where it belongs: changed, reordered or cut off."""
