"""Sub-models: cards, the model cache, and the engines that run them in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from owm.model._cache import ModelCache, Progress
from owm.model._cards import SHIPPED, ModelCard, ModelFile, WheelSource
from owm.model._interface import (
    ChatMessage,
    Done,
    Embeddings,
    Engine,
    EngineStatistics,
    GenerateRequest,
    Token,
)

if TYPE_CHECKING:
    from owm.config import ModelSettings
    from owm.identity import PeerId

__all__ = [
    "SHIPPED",
    "ChatMessage",
    "Done",
    "Embeddings",
    "Engine",
    "EngineStatistics",
    "GenerateRequest",
    "ModelCache",
    "ModelCard",
    "ModelFile",
    "Progress",
    "Token",
    "WheelSource",
    "engine_of",
]


def engine_of(
    settings: ModelSettings, owner: PeerId | None = None, environment: Mapping[str, str] | None = None
) -> Engine:
    """The engine that the settings choose, not running yet.

    Args:
        owner: whose worker it is; it goes into the hash of a model that has no file.
        environment: variables for an engine's process beside our own, as :func:`owm.hardware.memory_limits` makes them.

    Raises:
        ConfigError: the settings do not fit together, or name a model that is not known.
    """
    if settings.engine == "openai":
        from owm.model._openai import OpenAIEngine  # loads httpx

        return OpenAIEngine(settings, owner)
    from owm.model._engine import LlamaEngine

    return LlamaEngine(settings, environment=environment)
