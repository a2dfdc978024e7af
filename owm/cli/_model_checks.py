"""What ``owm doctor`` looks at of a worker's models and engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psutil
import trio

from owm.cli._checks import Finding
from owm.cli._local import read_peer_file
from owm.config import Effective, ModelSettings, expand
from owm.errors import ConfigError, TemporaryError

__all__ = ["model_findings"]

_MIB: Final = 2**20
_BESIDES_MIB: Final = 512  #: what an engine takes besides the weights: contexts, buffers, the program


def model_findings(effective: Effective) -> Iterator[Finding]:
    """Whether what a worker serves is here and undamaged, and an engine can run it; nothing for other peers."""
    settings = effective.settings.model
    if "worker" not in effective.settings.node.roles:
        return
    if settings.engine != "llama.cpp":
        yield from _server(settings)
        return
    from owm.model import ModelCache

    cache = ModelCache(expand(settings.model_cache_dir))
    needed, whole = _BESIDES_MIB, True
    for name in (settings.chat, settings.embedding):
        if not name:
            continue
        try:
            card = cache.card(name)
            path = cache.verify(card)
        except ConfigError as error:
            whole = False
            yield Finding(f"model {name}", "error", str(error), f"run `owm models pull {name}`")
        else:
            needed += card.size // _MIB
            yield Finding(f"model {name}", "ok", f"{path}, SHA-256 as pinned")
    if whole:
        yield _engine_memory(effective, needed)


def _engine_memory(effective: Effective, needed: int) -> Finding:
    limit = effective.settings.model.memory_limit_mib
    free = psutil.virtual_memory().available // _MIB
    if needed > limit:
        remedy = f"set model.memory_limit_mib to {needed} at least, or serve a smaller model"
        return Finding("engine", "error", f"the models take about {needed} MiB, it may use {limit} MiB", remedy)
    if needed > free and read_peer_file(effective.data_dir) is None:
        remedy = "stop other programs, serve a smaller model, or lower model.slots and model.context"
        return Finding("engine", "error", f"the models take about {needed} MiB, {free} MiB are available", remedy)
    return Finding("engine", "ok", f"takes about {needed} MiB of the {limit} MiB that it may")


def _server(settings: ModelSettings) -> Iterator[Finding]:
    """A model server of the operator's behind this worker: does it answer, take the key, and know the models?"""
    from owm.model import engine_of

    async def look() -> None:
        async with engine_of(settings).running():  # a worker's own first look at it
            return

    try:
        trio.run(look)
    except ConfigError as error:
        yield Finding("engine", "error", str(error), "correct [model] in owm.toml: url, api_key_env, chat, embedding")
    except TemporaryError as error:
        remedy = "start the model server, or set model.url to its base URL"
        yield Finding("engine", "error", str(error), remedy)
    else:
        yield Finding("engine", "ok", f"{settings.url} answers and serves {settings.chat}")
