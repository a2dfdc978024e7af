"""What can go wrong with a model or its engine."""

from __future__ import annotations

from owm.errors import ConfigError, TemporaryError, UsageError

__all__ = [
    "BadWeights",
    "EngineBusy",
    "EngineCrashed",
    "EngineError",
    "InvalidRequest",
    "ModelMissing",
    "PromptTooLong",
    "ReaderTooSlow",
]


class EngineError(TemporaryError):
    """The engine could not do the work; another worker may."""


class EngineCrashed(EngineError):
    """The engine's process ended under the work; it is being restarted."""


class EngineBusy(EngineError):
    """The engine's queue is full."""


class ReaderTooSlow(EngineError):
    """Whoever asked did not read the answer while it was written; it was cancelled, and the engine runs on."""


class InvalidRequest(UsageError):
    """The request makes no sense to the model, such as an unknown model id or no messages."""


class PromptTooLong(UsageError):
    """The prompt leaves no room for an answer in the model's context, or the texts to embed are too many."""


class ModelMissing(ConfigError):
    """The model's files are not in the cache: run ``owm models pull``."""


class BadWeights(ConfigError):
    """A model file is not what it should be: its hash or its format is wrong. It was not loaded."""
