"""Settings as documents: the commented ``owm.toml``, and what the reference page is made from.

The comment of a setting is its ``#:`` comment in the source, so the file, the page and the code cannot disagree.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from owm.config import _settings
from owm.config._settings import Settings

__all__ = ["Setting", "describe_settings", "render_settings"]

_FIELD = re.compile(r"^    (?P<name>\w+): (?P<type>.+?)(?: = .*?)?(?:  #(?: noqa[^-]*-|:) (?P<comment>.*))?$", re.M)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as documents show it."""

    section: str
    key: str
    default: Any
    comment: str
    section_comment: str

    @property
    def variable(self) -> str:
        """The environment variable that overrides the file."""
        return f"OWM_{self.section}_{self.key}".upper()


@cache
def describe_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the file."""
    source = inspect.getsource(_settings)
    found = []
    for section in msgspec.structs.fields(Settings):
        cls = section.type
        body = re.split(r"\n(?=class |\Z)", source.split(f"class {cls.__name__}(", 1)[1])[0]
        comments = {match["name"]: (match["comment"] or "").strip() for match in _FIELD.finditer(body)}
        about = inspect.getdoc(cls) or ""
        defaults = msgspec.to_builtins(cls())
        for field in msgspec.structs.fields(cls):
            comment = comments.get(field.name, "")
            found.append(Setting(section.name, field.name, defaults[field.name], comment, about))
    return tuple(found)


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists of them are TOML's as well.
    return json.dumps(value, ensure_ascii=False)


def render_settings(values: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str] | None = None) -> str:
    """A TOML document.

    Args:
        values: by section and key.
        sources: where each ``section.key`` comes from. With it only ``values`` are shown, each with its source;
            without it every setting is shown with its comment, and those not in ``values`` are commented out.
    """
    lines: list[str] = []
    current = ""
    for setting in describe_settings():
        given = values.get(setting.section, {})
        if sources is not None and not given:
            continue
        if setting.section != current:
            lines += ["", f"# {setting.section_comment}"] if sources is None else [""]
            lines.append(f"[{setting.section}]")
            current = setting.section
        if sources is not None:
            if setting.key in given:
                source = sources.get(f"{setting.section}.{setting.key}", "default")
                lines.append(f"{setting.key} = {_toml(given[setting.key])}  # {source}")
            continue
        comment = f"  # {setting.comment}" if setting.comment else ""
        mark = "" if setting.key in given else "# "
        lines.append(f"{mark}{setting.key} = {_toml(given.get(setting.key, setting.default))}{comment}")
    head = ["# Settings of an OWM peer. Lines that are commented out show the defaults."] if sources is None else []
    return "\n".join([*head, *(lines if head else lines[1:])]) + "\n"
