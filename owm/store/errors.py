"""What can go wrong with the store."""

from __future__ import annotations

from owm.errors import ConfigError, TemporaryError

__all__ = ["BlobDamaged", "BlobMissing", "SchemaTooNew", "StoreClosed", "StoreError"]


class StoreError(TemporaryError):
    """The disk or the database failed; what was asked for was not stored."""


class StoreClosed(StoreError):
    """The store is not running."""


class SchemaTooNew(ConfigError):
    """The database was written by a newer version of OWM: upgrade, or use another data directory."""


class BlobMissing(StoreError):
    """There is no blob of that hash here."""


class BlobDamaged(StoreError):
    """A blob's bytes no longer match its hash; fetch it again."""
