"""Options that several commands share, and the settings that they add up to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from owm.config import Effective, load_settings

__all__ = ["config_options", "settings_of"]

_F = TypeVar("_F", bound=Callable[..., Any])


def config_options(function: _F) -> _F:
    """Adds ``--config`` and ``--data-dir``."""
    function = click.option("--data-dir", metavar="DIR", help="Instead of node.data_dir.")(function)
    return click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings file (default: $OWM_CONFIG, else ~/.owm/owm.toml if it exists).",
    )(function)


def settings_of(config: Path | None, data_dir: str | None, **flags: Any) -> Effective:
    """The settings in force; ``flags`` are ``section__key=value``, None where not given.

    With ``--data-dir`` and no ``--config``, the file in that folder is read if there is one.
    """
    if config is None and data_dir is not None:
        beside = Path(data_dir).expanduser() / "owm.toml"
        config = beside if beside.exists() else None
    named = {name.replace("__", ".", 1): value for name, value in flags.items()}
    return load_settings(config, {"node.data_dir": data_dir, **named})
