"""Signed records: what peers publish, how it is signed, and why it is refused."""

from owm.records._envelope import MAX_RECORD_BYTES, SignedRecord, open_record, sign_record
from owm.records._sequences import ReplayGuard
from owm.records._types import (
    TIERS,
    Accelerator,
    CapabilityManifest,
    LogHead,
    Record,
    RecordLimits,
    ServedModel,
    TaskReceipt,
    record_types,
)

__all__ = [
    "MAX_RECORD_BYTES",
    "TIERS",
    "Accelerator",
    "CapabilityManifest",
    "LogHead",
    "Record",
    "RecordLimits",
    "ReplayGuard",
    "ServedModel",
    "SignedRecord",
    "TaskReceipt",
    "open_record",
    "record_types",
    "sign_record",
]
