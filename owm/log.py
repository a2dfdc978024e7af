"""Structured logs on standard error: JSON or human, with secrets taken out and control characters made harmless.

One chain of processors serves our own loggers and those of libraries, so nothing goes around the redaction. What is
redacted: values whose key names a secret, and text that looks like one (API keys, bearer tokens, 64 hex digits under a
key that does not name a hash, raw bytes). What a stranger wrote cannot forge a line or move the cursor of a terminal.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

__all__ = ["REDACTED", "configure", "redact"]

REDACTED: Final = "[redacted]"

_SECRET_WORDS: Final = frozenset(
    {"seed", "secret", "key", "token", "macaroon", "preimage", "authorization", "password", "passphrase", "cookie"}
)
#: Words that, as the last of a key's name, make a secret word before them harmless: ``key_id``, ``token_count``.
_PUBLIC_WORDS: Final = frozenset(
    {"id", "ids", "count", "type", "kind", "name", "path", "file", "hash", "sha256", "bits", "second", "seconds"}
)
_HASH_WORDS: Final = frozenset(
    {"sha256", "hash", "root", "id", "record", "receipt", "digest", "head", "blob", "topic", "network"}
)

_WORDS: Final = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_LOOKS_SECRET: Final = re.compile(
    r"\bowm[-_][A-Za-z0-9_-]{16,}"  # our API keys
    r"|\bsk-[A-Za-z0-9_-]{16,}"
    r"|(?i:\b(?:bearer|l402|lsat|basic)\s+)[A-Za-z0-9+/=_.:~-]{8,}"
    r"|(?i:\b(?:seed|secret|token|macaroon|preimage|password|api[-_ ]?key))\s*[=:]\s*[^\s,;&]{4,}"
)
_HEX_SECRET: Final = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{64}(?![0-9A-Za-z])")
_UNSAFE: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})  #: controls, format and separator marks
_MAX_TEXT: Final = 4096  #: characters of one value
_MAX_DEPTH: Final = 6

Event = MutableMapping[str, Any]


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _names_secret(name: str) -> bool:
    words = _words(name)
    if not words or words[-1] in _PUBLIC_WORDS or "public" in words:
        return False
    return any(word in _SECRET_WORDS for word in words)


def _names_hash(name: str) -> bool:
    words = _words(name)
    return bool(words) and words[-1] in _HASH_WORDS


def _escape(text: str, keep: str = "") -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c in keep or unicodedata.category(c) not in _UNSAFE
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def _clean_text(text: str, *, hashes: bool = False, keep: str = "", limit: int = _MAX_TEXT) -> str:
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    text = _LOOKS_SECRET.sub(REDACTED, text)
    if not hashes:
        text = _HEX_SECRET.sub(REDACTED, text)
    return _escape(text, keep)


def _clean(name: str, value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _names_secret(name):
        return REDACTED
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return _clean_text(value, hashes=_names_hash(name))
    if isinstance(value, bytes | bytearray | memoryview):
        # A peer id is bytes that know how to print themselves; plain bytes may be a seed.
        if type(value).__str__ is not object.__str__ and type(value) not in (bytes, bytearray, memoryview):
            return _clean_text(str(value))
        return f"<{len(value)} bytes>"
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {_clean_text(str(k)): _clean(str(k), v, depth + 1) for k, v in list(value.items())[:64]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(name, item, depth + 1) for item in list(value)[:64]]
    return _clean_text(str(value), hashes=_names_hash(name))


def redact(_logger: object, _method: str, event: Event) -> Event:
    """The processor that takes out secrets and escapes control characters in every key and value."""
    cleaned: Event = {}
    for name, value in event.items():
        if name == "exception" and isinstance(value, str):
            # Traces keep their line breaks, indented so that no line of theirs can pass for a log line.
            text = _clean_text(value, keep="\n", limit=16 * _MAX_TEXT)
            cleaned[name] = "\n".join(f"    | {line}" for line in text.splitlines())
        else:
            cleaned[_clean_text(str(name))] = _clean(str(name), value)
    return cleaned


def _plain_exception(_logger: object, _method: str, event: Event) -> Event:
    """Values that are exceptions become ``Type: message``."""
    for name, value in event.items():
        if isinstance(value, BaseException) and name != "exc_info":
            event[name] = f"{type(value).__name__}: {value}"
    return event


class _ToStructlog(logging.Handler):
    """Hands the records of libraries to the same chain."""

    def emit(self, record: logging.LogRecord) -> None:
        exc_info = record.exc_info if record.exc_info and record.exc_info[0] else None
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=exc_info)


def configure(level: str = "INFO", format: str = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for this process; may be called again.

    Args:
        level: DEBUG, INFO, WARNING or ERROR. Libraries speak from WARNING on, whatever the level.
        format: ``json``, ``human``, or ``auto`` for human on a terminal and JSON elsewhere.
        stream: instead of standard error.
    """
    out = sys.stderr if stream is None else stream
    human = format == "human" or (format == "auto" and out.isatty())
    threshold = logging.getLevelNamesMapping()[level]
    renderer: Any
    if human:
        renderer = structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
    else:
        renderer = structlog.processors.JSONRenderer(sort_keys=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _plain_exception,
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(threshold, logging.WARNING))
