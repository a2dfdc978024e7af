"""The families of errors, split by who caused them and what to do about it.

Every error that may reach a user derives from :class:`OwmError`; its message says what happened and,
where there is one, what to do next. Packages define their own errors under one of these families.
"""

from __future__ import annotations

__all__ = ["ConfigError", "IdentityError", "OwmError", "PeerError", "TemporaryError", "UsageError"]


class OwmError(Exception):
    """The root of all errors that OWM raises on purpose.

    ``exit_code`` is what the command line exits with when the error ends a command.
    """

    exit_code = 1


class UsageError(OwmError):
    """The caller asked for something that makes no sense; asking again the same way cannot work."""

    exit_code = 2


class ConfigError(OwmError):
    """A setting is missing or wrong: the message names the setting, the value and what is allowed."""

    exit_code = 3


class IdentityError(OwmError):
    """The identity key cannot be used: missing, unreadable, readable by others, or damaged."""

    exit_code = 4


class PeerError(OwmError):
    """A remote peer broke the protocol; the peer is to blame and is penalised."""

    exit_code = 5


class TemporaryError(OwmError):
    """The outside world failed (network, disk, a process that died); trying again later may work."""

    exit_code = 6
