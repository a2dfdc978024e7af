"""The records that peers publish, each with its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

__all__ = [
    "TIERS",
    "Accelerator",
    "CapabilityManifest",
    "LogHead",
    "Record",
    "RecordLimits",
    "ServedModel",
    "TaskReceipt",
    "record_types",
]

TIERS: Final = ("t0", "t1", "t2", "t3")  #: t0 is below Tier 1 of SRS 4.1.3


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """What a type of record may be: checked before and after decoding."""

    max_bytes: int  #: of the whole envelope
    max_age: float | None  #: seconds; None for records kept forever


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The common head of all records. Fields that have their default value are not sent.

    ``sequence`` is ``max(last + 1, unix milliseconds)`` of the issuer, so it also says when it was issued.
    """

    TYPE: ClassVar[str]
    LIMITS: ClassVar[RecordLimits]

    sequence: int
    network: str = ""  #: the network's id, filled in when the record is signed

    def dht_suffix(self) -> bytes:
        """What distinguishes records of one issuer and type in the DHT; empty when there is only one."""
        return b""


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A probed GPU."""

    model: str
    vram_mib: int
    driver: str


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that a worker has loaded."""

    id: str
    sha256: str  #: of the weights file, hex
    kind: str  #: "chat" or "embedding"
    context: int  #: tokens per slot


class LogHead(Record, frozen=True, kw_only=True):
    """Size and Merkle root (RFC 6962) of a peer's dispatch log."""

    TYPE: ClassVar[str] = "log-head"
    LIMITS: ClassVar[RecordLimits] = RecordLimits(max_bytes=512, max_age=None)

    size: int
    root: bytes


class CapabilityManifest(Record, frozen=True, kw_only=True):
    """What a peer is and can do right now (SRS-NODE-04); published every 60 s, expires after 180 s."""

    TYPE: ClassVar[str] = "manifest"
    LIMITS: ClassVar[RecordLimits] = RecordLimits(max_bytes=16 * 1024, max_age=180.0)

    roles: tuple[str, ...]
    tier: str
    addresses: tuple[str, ...]
    nonce: bytes  #: random per process: two machines with one key see each other's
    software: str = ""
    accelerators: tuple[Accelerator, ...] = ()
    ram_mib: int = 0
    bandwidth_mbps: float = 0.0
    task_types: tuple[str, ...] = ()
    models: tuple[ServedModel, ...] = ()
    slots: int = 0  #: tasks that can run at once
    busy: int = 0  #: of them, running now
    queued: int = 0
    base_rate_msat: int = 0
    engine: str = ""  #: "llama.cpp", "openai" (a foreign server, so unaudited), ...
    unaudited: bool = False
    ln_node: str = ""
    log_size: int = 0
    log_root: bytes = b""


class TaskReceipt(Record, frozen=True, kw_only=True):
    """What was done for whom, signed by the worker as envelope and countersigned by the requester."""

    TYPE: ClassVar[str] = "receipt"
    LIMITS: ClassVar[RecordLimits] = RecordLimits(max_bytes=8 * 1024, max_age=None)

    task: str  #: task id
    task_type: str
    requester: bytes  #: peer id
    worker: bytes  #: peer id
    input_hash: bytes  #: SHA-256 over salt and canonical input
    output_hash: bytes  #: SHA-256 of what makes the answer checkable
    model_sha256: str
    prompt_tokens: int
    completion_tokens: int
    queued_ms: int
    run_ms: int
    price_msat: int = 0
    seed: int = 0  #: of the sampling; whoever holds the answer can check its hash with it


def record_types() -> dict[str, type[Record]]:
    """Every record type by its name."""
    return {cls.TYPE: cls for cls in (CapabilityManifest, TaskReceipt, LogHead)}
