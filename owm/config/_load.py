"""Where settings come from: flags over environment over file over defaults."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from owm.config._settings import ROLES, Settings
from owm.errors import ConfigError

__all__ = ["Effective", "config_path", "expand", "load_settings"]

_SECTIONS: Final = {f.name: f.type for f in msgspec.structs.fields(Settings)}
#: Names that the SRS fixes (SRS 10.3) beside the general OWM_<SECTION>_<KEY>.
_ALIASES: Final = {
    "OWM_COORDINATOR_URL": ("network", "coordinator_url"),
    "OWM_MODEL_CACHE_DIR": ("model", "model_cache_dir"),
    "OWM_LOG_LEVEL": ("log", "level"),
    "OWM_LND_HOST": ("lightning", "lnd_rpc_host"),
    "OWM_LND_TLS_CERT_PATH": ("lightning", "lnd_tls_cert_path"),
    "OWM_DATA_DIR": ("node", "data_dir"),
}


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings in force and, for each ``section.key``, where its value came from."""

    settings: Settings
    sources: Mapping[str, str]
    path: Path | None  #: the file that was read, if any

    @property
    def data_dir(self) -> Path:
        return expand(self.settings.node.data_dir)

    @property
    def identity_path(self) -> Path:
        override = os.environ.get("OWM_IDENTITY_KEY_PATH")
        return expand(override) if override else self.data_dir / "identity.key"

    @property
    def database_path(self) -> Path:
        """Task log, sequence numbers and small state."""
        return self.data_dir / "owm.sqlite"

    @property
    def keys_path(self) -> Path:
        """The API keys of a gateway."""
        return self.data_dir / "keys.sqlite"


def expand(path: str) -> Path:
    """A path with ``~`` and variables expanded."""
    return Path(os.path.expandvars(path)).expanduser()


def config_path(environ: Mapping[str, str] | None = None) -> Path:
    """The file that is read when none is named: ``$OWM_CONFIG``, else ``~/.owm/owm.toml``."""
    env = os.environ if environ is None else environ
    return expand(env.get("OWM_CONFIG") or f"{env.get('OWM_DATA_DIR') or '~/.owm'}/owm.toml")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no config file {path}: run `owm init`, or name another with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    found = {}
    for section, cls in _SECTIONS.items():
        for f in msgspec.structs.fields(cls):
            name = f"OWM_{section}_{f.name}".upper()
            if name in environ:
                found[section, f.name] = environ[name]
    for name, key in _ALIASES.items():
        if name in environ:
            found.setdefault(key, environ[name])
    return found


def _from_text(text: str, annotation: Any, name: str) -> Any:
    """An environment value as the setting's type; lists are separated by commas."""
    try:
        if annotation is bool or "tuple" in str(annotation) or annotation is tuple:
            if annotation is bool:
                return msgspec.convert(text.strip().lower(), bool, strict=False)
            return msgspec.convert([part.strip() for part in text.split(",") if part.strip()], annotation)
        return msgspec.convert(text, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}={text!r} is not allowed: {error}") from error


def load_settings(
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Effective:
    """Merge all sources and check the result.

    Args:
        path: the file; None reads the usual one if it exists.
        flags: ``{"section.key": value}`` from the command line.
        environ: instead of the process environment.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    env = os.environ if environ is None else environ
    file = path
    if file is None and config_path(env).exists():
        file = config_path(env)
    merged: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    if file is not None:
        for section, values in _read_file(file).items():
            if not isinstance(values, dict):
                raise ConfigError(f"{file}: {section!r} stands outside a section such as [node]")
            merged[section] = dict(values)
            sources.update({f"{section}.{key}": str(file) for key in values})
    for (section, key), text in _from_environment(env).items():
        annotation = next(f.type for f in msgspec.structs.fields(_SECTIONS[section]) if f.name == key)
        merged.setdefault(section, {})[key] = _from_text(text, annotation, f"OWM_{section}_{key}".upper())
        sources[f"{section}.{key}"] = "environment"
    for dotted, value in (flags or {}).items():
        if value is not None:
            section, key = dotted.split(".", 1)
            merged.setdefault(section, {})[key] = value
            sources[dotted] = "flag"
    try:
        settings = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file or 'the settings'}: {error}") from error
    unknown = [role for role in settings.node.roles if role not in ROLES]
    if unknown:
        raise ConfigError(f"unknown role {unknown[0]!r}: choose from {', '.join(ROLES)}")
    for section, cls in _SECTIONS.items():
        for f in msgspec.structs.fields(cls):
            sources.setdefault(f"{section}.{f.name}", "default")
    return Effective(settings, sources, file)
