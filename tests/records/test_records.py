"""Envelopes: everything that is not exactly what was signed is refused, each with its own error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.identity import Identity
from owm.records import (
    MAX_RECORD_BYTES,
    Accelerator,
    CapabilityManifest,
    LogHead,
    Record,
    ReplayGuard,
    ServedModel,
    TaskReceipt,
    open_record,
    sign_record,
)
from owm.records._envelope import _KEY_HEAD, _signed_head, _varint
from owm.records.errors import (
    BadSignature,
    FromTheFuture,
    MalformedRecord,
    NonCanonical,
    OversizedRecord,
    RecordError,
    ReplayedRecord,
    StaleRecord,
    UnknownRecordType,
    WrongKey,
    WrongNetwork,
)

ME, OTHER = Identity(b"m" * 32), Identity(b"o" * 32)
NOW = 1_800_000_000.0
HEAD = LogHead(sequence=int(NOW * 1000), size=3, root=b"r" * 32)

_text, _bytes, _count = st.text(max_size=12), st.binary(max_size=40), st.integers(0, 2**40)
_hash = st.binary(min_size=32, max_size=32)
_sequence = st.integers(int(NOW * 1000) - 60_000, int(NOW * 1000) + 60_000)
RECORDS = st.one_of(
    st.builds(LogHead, sequence=_sequence, size=_count, root=_hash),
    st.builds(
        TaskReceipt, sequence=_sequence, task=_text, task_type=_text, requester=_bytes, worker=_bytes,
        input_hash=_hash, output_hash=_hash, model_sha256=_text, prompt_tokens=_count, completion_tokens=_count,
        queued_ms=_count, run_ms=_count, price_msat=_count,
    ),
    st.builds(
        CapabilityManifest, sequence=_sequence, roles=st.tuples(_text), tier=_text,
        addresses=st.lists(_text, max_size=3).map(tuple), nonce=_bytes, bandwidth_mbps=st.floats(0, 1e6),
        accelerators=st.tuples(st.builds(Accelerator, model=_text, vram_mib=_count, driver=_text)),
        models=st.tuples(st.builds(ServedModel, id=_text, sha256=_text, kind=_text, context=_count)),
        unaudited=st.booleans(), slots=_count, log_root=_hash,
    ),
)  # fmt: skip


def envelope(payload: bytes, kind: str = "log-head", network: str = "net", identity: Identity = ME) -> bytes:
    """A correctly signed envelope around any payload."""
    payload_type = f"/owm/{kind}/1".encode()
    signature = identity.sign(_signed_head(network, payload_type) + _varint(len(payload)) + payload)
    parts = (b"\x12", _varint(len(payload_type)), payload_type, b"\x1a", _varint(len(payload)), payload, b"\x2a\x40")
    return _KEY_HEAD + identity.public_key + b"".join(parts) + signature


@given(RECORDS)
def test_any_record_decodes_to_what_was_encoded(record: Record) -> None:
    signed = sign_record(ME, record, "net")
    opened = open_record(signed.envelope, "net", NOW, issuer=ME.peer_id)
    assert opened.record == signed.record == msgspec.structs.replace(record, network="net")
    assert opened.id == signed.id and opened.issuer == ME.peer_id and opened.envelope == signed.envelope


def test_every_flipped_bit_is_refused() -> None:
    good = sign_record(ME, HEAD, "net").envelope
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(RecordError):
                open_record(bytes(bad), "net", NOW)


@settings(max_examples=200)
@given(RECORDS, st.data())
def test_any_flipped_byte_of_any_record_is_refused(record: Record, data: st.DataObject) -> None:
    bad = bytearray(sign_record(ME, record, "net").envelope)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        open_record(bytes(bad), "net", NOW)


@given(st.binary(max_size=300))
def test_rubbish_is_refused_as_a_record_error(data: bytes) -> None:
    for candidate in (data, _KEY_HEAD + data, envelope(data)):
        with pytest.raises(RecordError):
            open_record(candidate, "net", NOW)


def test_truncation_and_appending_are_refused() -> None:
    good = sign_record(ME, HEAD, "net").envelope
    for end in range(len(good)):
        with pytest.raises(RecordError):
            open_record(good[:end], "net", NOW)
    with pytest.raises(MalformedRecord):
        open_record(good + b"\x00", "net", NOW)


def test_each_reason_has_its_own_error() -> None:
    encode = msgspec.msgpack.encode
    fields = {"sequence": HEAD.sequence, "network": "net", "size": 3, "root": b"r" * 32}
    assert open_record(envelope(encode(fields)), "net", NOW).record == msgspec.structs.replace(HEAD, network="net")
    refused = [
        (OversizedRecord, envelope(bytes(MAX_RECORD_BYTES))),
        (OversizedRecord, envelope(encode(fields | {"root": bytes(600)}))),
        (UnknownRecordType, envelope(encode(fields), kind="nonsense")),
        (WrongNetwork, envelope(encode(fields | {"network": "other"}))),
        (BadSignature, envelope(encode(fields), network="other")),
        (NonCanonical, envelope(encode(dict(reversed(fields.items()))))),
        (NonCanonical, envelope(encode(fields).replace(b"\xa4size\x03", b"\xa4size\xcc\x03"))),
        (MalformedRecord, envelope(encode(fields | {"more": 1}))),
        (MalformedRecord, envelope(encode(fields | {"size": "3"}))),
        (FromTheFuture, envelope(encode(fields | {"sequence": int((NOW + 7201) * 1000)}))),
    ]
    for error, data in refused:
        with pytest.raises(RecordError) as caught:
            open_record(data, "net", NOW)
        assert type(caught.value) is error, data[:80]
    with pytest.raises(WrongKey):
        open_record(sign_record(ME, HEAD, "net").envelope, "net", NOW, issuer=OTHER.peer_id)
    old = CapabilityManifest(sequence=int((NOW - 7381) * 1000), roles=(), tier="t0", addresses=(), nonce=b"")
    with pytest.raises(StaleRecord):
        open_record(sign_record(ME, old, "net").envelope, "net", NOW)
    with pytest.raises(OversizedRecord):
        sign_record(ME, msgspec.structs.replace(HEAD, root=bytes(600)), "net")


def test_a_replay_is_refused_and_the_guard_is_bounded() -> None:
    guard = ReplayGuard(capacity=2)
    signed = sign_record(ME, HEAD, "net")
    guard.admit(signed)
    for replayed in (signed, sign_record(ME, msgspec.structs.replace(HEAD, sequence=HEAD.sequence - 1), "net")):
        with pytest.raises(ReplayedRecord):
            guard.admit(replayed)
    guard.admit(sign_record(OTHER, HEAD, "net"))
    guard.admit(sign_record(ME, msgspec.structs.replace(HEAD, sequence=HEAD.sequence + 1), "net"))


def test_a_length_that_is_not_shortest_is_refused() -> None:
    good = sign_record(ME, HEAD, "net").envelope
    length = good[39]
    with pytest.raises(NonCanonical):
        open_record(good[:39] + bytes([length | 0x80, 0]) + good[40:], "net", NOW)
