"""Verified manifests per second in one process, as a fraction of what bare Ed25519 verification allows.

Ours: open the envelope (decode, canonical form, signature, age) of a worker's manifest and take it into a directory of
the same process. Baseline: libsodium's verification of a signature over the same bytes. Both arms run in turns in the
same process, so that the machine's speed and its noise cancel out.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable

from nacl.signing import VerifyKey

from benchmarks._report import Result, main
from owm.directory import DirectoryCore
from owm.identity import Identity
from owm.records import CapabilityManifest, ServedModel, open_record, sign_record

NETWORK = "0" * 32
NOW = 1_800_000_000.0


def _manifest(number: int) -> tuple[Identity, bytes, bytes]:
    """An identity, its manifest's envelope, and the bytes that the signature covers."""
    identity = Identity(hashlib.sha256(number.to_bytes(4, "big")).digest())
    record = CapabilityManifest(
        sequence=int(NOW * 1000),
        roles=("worker",),
        tier="t1",
        addresses=("/ip4/203.0.113.7/tcp/9000", "/ip4/198.51.100.3/tcp/9000"),
        nonce=bytes(16),
        software="owm/0.1.0",
        ram_mib=65536,
        bandwidth_mbps=212.5,
        task_types=("inference", "embed_data"),
        models=(ServedModel("chat", "aa" * 32, "chat", 2048), ServedModel("embedding", "bb" * 32, "embedding", 256)),
        slots=4,
        engine="llama.cpp",
        log_size=1000,
        log_root=bytes(32),
    )
    signed = sign_record(identity, record, NETWORK)
    return identity, signed.envelope, signed.signed


def _rate(work: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def run(quick: bool) -> list[Result]:
    """Median over rounds of both arms in turns."""
    count, rounds = (300, 3) if quick else (2000, 7)
    made = [_manifest(number) for number in range(count)]
    bare = [(VerifyKey(identity.public_key), signed, envelope[-64:]) for identity, envelope, signed in made]

    def ours() -> None:
        directory = DirectoryCore(made[0][0].peer_id, b"", b"salt")
        for _, envelope, _ in made:
            directory.note(open_record(envelope, NETWORK, NOW), 0.0)

    def baseline() -> None:
        for key, message, signature in bare:
            key.verify(message, signature)

    both = [(_rate(ours, count), _rate(baseline, count)) for _ in range(rounds)]
    return [
        Result(
            metric="verified manifests",
            unit="1/s",
            ours=statistics.median(pair[0] for pair in both),
            baseline=statistics.median(pair[1] for pair in both),
            baseline_name="bare Ed25519 verification (libsodium)",
            goal=0.5,
            relation=">=",
        )
    ]


if __name__ == "__main__":
    main("manifests", run)
