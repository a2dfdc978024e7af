"""Tasks: what peers ask of each other, who gets to do it, and the proof that it was done."""

from owm.tasks._core_life import TaskEvent, TaskLife, TaskState
from owm.tasks._core_merkle import MerkleLog, verify_consistency, verify_inclusion
from owm.tasks._core_reliability import Reliability
from owm.tasks._dispatch_log import DispatchLog, DispatchRecord
from owm.tasks._events import Completed, Embedded, Event, Restart, Started, TokenEvent
from owm.tasks._receipts import countersigned, input_body
from owm.tasks._requester import TaskEvents, TaskRequester
from owm.tasks._scheduler import Scheduler, required_tier
from owm.tasks._types import TASK_TYPES, EmbedTask, InferenceTask, Message, Priority, TaskRules
from owm.tasks._worker import TaskWorker, WorkerLimits, WorkerStatistics

__all__ = [
    "TASK_TYPES",
    "Completed",
    "DispatchLog",
    "DispatchRecord",
    "EmbedTask",
    "Embedded",
    "Event",
    "InferenceTask",
    "MerkleLog",
    "Message",
    "Priority",
    "Reliability",
    "Restart",
    "Scheduler",
    "Started",
    "TaskEvent",
    "TaskEvents",
    "TaskLife",
    "TaskRequester",
    "TaskRules",
    "TaskState",
    "TaskWorker",
    "TokenEvent",
    "WorkerLimits",
    "WorkerStatistics",
    "countersigned",
    "input_body",
    "required_tier",
    "verify_consistency",
    "verify_inclusion",
]
