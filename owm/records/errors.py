"""Why a record is refused; each reason has its own error."""

from __future__ import annotations

from owm.errors import PeerError

__all__ = [
    "BadSignature",
    "FromTheFuture",
    "MalformedRecord",
    "NonCanonical",
    "OversizedRecord",
    "RecordError",
    "ReplayedRecord",
    "StaleRecord",
    "UnknownRecordType",
    "WrongKey",
    "WrongNetwork",
]


class RecordError(PeerError):
    """A record that must not be used, stored or forwarded."""


class MalformedRecord(RecordError):
    """The bytes are not an envelope, or its payload does not match the record's schema."""


class OversizedRecord(RecordError):
    """The record is larger than its type allows; it was not decoded."""


class UnknownRecordType(RecordError):
    """No record type of that name is known here."""


class NonCanonical(RecordError):
    """The same content has a shorter or differently ordered encoding; only the canonical one is accepted."""


class BadSignature(RecordError):
    """The signature does not match the content."""


class WrongNetwork(RecordError):
    """The record belongs to another network."""


class WrongKey(RecordError):
    """The record is signed by a key that may not issue it."""


class StaleRecord(RecordError):
    """The record is older than its type may become."""


class FromTheFuture(RecordError):
    """The issuer's clock is more than two hours ahead of ours."""


class ReplayedRecord(RecordError):
    """A record with this or a higher sequence number is known already from the same issuer."""
