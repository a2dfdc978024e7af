"""Options that several commands share, and the settings that they add up to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from owm.compiled import run_compiled
from owm.config import Effective, load_settings

__all__ = ["compiled_option", "config_options", "settings_of"]

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


def compiled_option(function: _F) -> _F:
    """Adds ``--compiled``, which starts the command again on the compiled cores before it does anything."""

    def again(_context: click.Context, _parameter: click.Parameter, compiled: bool) -> None:
        if compiled:
            run_compiled()

    return click.option(
        "--compiled",
        is_flag=True,
        expose_value=False,
        callback=again,
        help="Run on the protocol cores that `make compile` has compiled: less CPU for the same.",
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
