"""What can go wrong with a task, split by what the caller can do about it."""

from __future__ import annotations

from owm.errors import PeerError, TemporaryError, UsageError

__all__ = [
    "ConsumerTooSlow",
    "InvalidTask",
    "InvalidTransition",
    "NoWorkers",
    "SealBroken",
    "TaskFailed",
    "TaskRefused",
    "TooManyTasks",
    "WorkerFault",
]


class InvalidTask(UsageError):
    """The task does not match its schema, or the worker cannot do it as asked (a prompt that is too long)."""


class InvalidTransition(UsageError):
    """A task was told to do what its state does not allow: a bug."""


class NoWorkers(TemporaryError):
    """No worker that can do the task is left; try again later."""


class TooManyTasks(TemporaryError):
    """Our own queue of tasks is full; try again later."""


class ConsumerTooSlow(TemporaryError):
    """Whoever asked stopped reading the answer; the work was cancelled to free the worker."""


class TaskFailed(TemporaryError):
    """The task could not be finished: its time was up, or each worker that tried it failed."""


class TaskRefused(TemporaryError):
    """A worker did not take the task; ``code`` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerFault(PeerError):
    """A worker sent what does not add up: a wrong receipt, a broken frame, more than was asked for."""


class SealBroken(PeerError):
    """A sealed frame is not what the other side sent, or not where it belongs: changed, reordered or cut off."""
