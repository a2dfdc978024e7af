"""What ``owm doctor`` looks at of a worker's models."""

from __future__ import annotations

from collections.abc import Iterator

from owm.cli._checks import Finding
from owm.config import Effective, expand
from owm.errors import ConfigError

__all__ = ["model_findings"]


def model_findings(effective: Effective) -> Iterator[Finding]:
    """Whether what a worker serves is here and undamaged; nothing for a peer that is no worker."""
    settings = effective.settings.model
    if "worker" not in effective.settings.node.roles:
        return
    if settings.engine != "llama.cpp":
        if not settings.url:
            yield Finding("engine", "error", f"engine {settings.engine!r} needs an address", "set model.url")
        return
    from owm.model import ModelCache

    cache = ModelCache(expand(settings.model_cache_dir))
    for name in (settings.chat, settings.embedding):
        if not name:
            continue
        try:
            path = cache.verify(cache.card(name))
        except ConfigError as error:
            yield Finding(f"model {name}", "error", str(error), f"run `owm models pull {name}`")
        else:
            yield Finding(f"model {name}", "ok", f"{path}, SHA-256 as pinned")
