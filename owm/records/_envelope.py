"""Signed records: the libp2p signed envelope (RFC 0002) around canonical msgpack.

The envelope is a protobuf of four byte fields (public key 1, payload type 2, payload 3, signature 5). It is
written and read here by hand, because exactly one encoding is accepted: fields in order, shortest lengths.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from typing import Final

import msgspec

from owm.identity import Identity, PeerId, verify
from owm.records._types import Record, record_types
from owm.records.errors import (
    BadSignature,
    FromTheFuture,
    MalformedRecord,
    NonCanonical,
    OversizedRecord,
    StaleRecord,
    UnknownRecordType,
    WrongKey,
    WrongNetwork,
)

__all__ = ["MAX_RECORD_BYTES", "SignedRecord", "open_record", "sign_record"]

MAX_RECORD_BYTES: Final = 64 * 1024
CLOCK_TOLERANCE: Final = 2 * 3600.0

_KEY_HEAD: Final = b"\x0a\x24\x08\x01\x12\x20"  # field 1, 36 bytes: the protobuf of an Ed25519 key
_encode = msgspec.msgpack.Encoder().encode


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _long_length(data: bytes, offset: int, length: int) -> tuple[int, int]:
    """A length of several bytes, of which the first is read."""
    for shift in (7, 14, 21):
        if offset >= len(data):
            break
        byte = data[offset]
        offset += 1
        length |= (byte & 0x7F) << shift
        if byte == 0:
            raise NonCanonical("a length in the envelope is not in its shortest form")
        if byte < 0x80:
            return length, offset
    raise MalformedRecord("the envelope has a bad length")


def _read_field(data: bytes, offset: int, tag: int) -> tuple[bytes, int]:
    """One length-delimited field; raises MalformedRecord or NonCanonical."""
    if offset >= len(data) or data[offset] != tag:
        raise MalformedRecord("the envelope's fields are missing or out of order")
    try:
        length = data[offset + 1]
    except IndexError:
        raise MalformedRecord("the envelope has a bad length") from None
    offset += 2
    if length > 0x7F:
        length, offset = _long_length(data, offset, length & 0x7F)
    end = offset + length
    if end > len(data):
        raise MalformedRecord("the envelope is cut short")
    return data[offset:end], end


@lru_cache(maxsize=64)
def _signed_head(network_id: str, payload_type: bytes) -> bytes:
    domain = f"owm-record:{network_id}".encode()
    return _varint(len(domain)) + domain + _varint(len(payload_type)) + payload_type


@lru_cache(maxsize=64)
def _type_of(payload_type: bytes) -> tuple[type[Record], msgspec.msgpack.Decoder[Record]]:
    try:
        text = payload_type.decode("ascii")
    except UnicodeDecodeError as error:
        raise UnknownRecordType("the record's type is not text") from error
    if not (text.startswith("/owm/") and text.endswith("/1")):
        raise UnknownRecordType(f"unknown record type {text[:64]!r}")
    cls = record_types().get(text[5:-2])
    if cls is None:
        raise UnknownRecordType(f"unknown record type {text[:64]!r}")
    return cls, msgspec.msgpack.Decoder(cls)


class SignedRecord(msgspec.Struct, frozen=True, dict=True):
    """A verified record with its envelope. Make one with :func:`sign_record` or :func:`open_record` only."""

    issuer: PeerId
    record: Record
    envelope: bytes
    signed: bytes  #: what the signature covers: domain, payload type and payload, each with its length

    @cached_property
    def id(self) -> bytes:
        """The SHA-256 of domain, payload type and payload: the same whoever encodes the envelope."""
        return hashlib.sha256(self.signed).digest()

    @property
    def type(self) -> str:
        return self.record.TYPE

    @property
    def sequence(self) -> int:
        return self.record.sequence

    @property
    def dht_key(self) -> bytes:
        """Where the record lives in the DHT: ``/owm/<type>/<issuer>[suffix]``."""
        return b"/owm/" + self.record.TYPE.encode() + b"/" + bytes(self.issuer) + self.record.dht_suffix()


def sign_record(identity: Identity, record: Record, network_id: str) -> SignedRecord:
    """Put ``record`` in an envelope signed by ``identity``; raises OversizedRecord."""
    payload_type = f"/owm/{record.TYPE}/1".encode()
    record = msgspec.structs.replace(record, network=network_id)
    payload = _encode(record)
    signed = _signed_head(network_id, payload_type) + _varint(len(payload)) + payload
    envelope = b"".join(
        (
            _KEY_HEAD,
            identity.public_key,
            b"\x12",
            _varint(len(payload_type)),
            payload_type,
            b"\x1a",
            _varint(len(payload)),
            payload,
            b"\x2a\x40",
            identity.sign(signed),
        )
    )
    if len(envelope) > record.LIMITS.max_bytes:
        raise OversizedRecord(
            f"a {record.TYPE} of {len(envelope)} bytes; at most {record.LIMITS.max_bytes} are allowed"
        )
    return SignedRecord(identity.peer_id, record, envelope, signed)


def open_record(data: bytes, network_id: str, now: float, issuer: PeerId | None = None) -> SignedRecord:
    """Check an envelope completely and decode it.

    Args:
        data: the envelope as received.
        network_id: of the network that we are on; it is part of what is signed.
        now: unix seconds, to judge the age by.
        issuer: whom the record must be by, where the caller knows.

    Raises:
        RecordError: one subclass for each reason.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise OversizedRecord(f"a record of {len(data)} bytes; at most {MAX_RECORD_BYTES} are allowed")
    if not data.startswith(_KEY_HEAD) or len(data) < 38:
        raise MalformedRecord("not a signed envelope by an Ed25519 key")
    key = data[6:38]
    payload_type, offset = _read_field(data, 38, 0x12)
    cls, decoder = _type_of(payload_type)
    if len(data) > cls.LIMITS.max_bytes:
        raise OversizedRecord(f"a {cls.TYPE} of {len(data)} bytes; at most {cls.LIMITS.max_bytes} are allowed")
    payload, offset = _read_field(data, offset, 0x1A)
    signature, offset = _read_field(data, offset, 0x2A)
    if offset != len(data):
        raise MalformedRecord("bytes follow the envelope")
    by = PeerId.of_key(key)
    if issuer is not None and by != issuer:
        raise WrongKey(f"signed by {by.short}, expected {issuer.short}")
    signed = _signed_head(network_id, payload_type) + _varint(len(payload)) + payload
    try:
        record = decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRecord(f"the payload is not a {cls.TYPE}: {error}") from error
    if _encode(record) != payload:
        raise NonCanonical(f"the payload of a {cls.TYPE} is not in canonical encoding")
    if record.network != network_id:
        raise WrongNetwork(f"a {cls.TYPE} of network {record.network[:32]!r}; this is {network_id}")
    if not verify(key, signed, signature):
        raise BadSignature(f"the signature of a {cls.TYPE} by {by.short} is not valid")
    age = now - record.sequence / 1000
    if age < -CLOCK_TOLERANCE:
        raise FromTheFuture(f"a {cls.TYPE} from {-age:.0f} s in the future")
    if cls.LIMITS.max_age is not None and age > cls.LIMITS.max_age + CLOCK_TOLERANCE:
        raise StaleRecord(f"a {cls.TYPE} of {age:.0f} s ago")
    return SignedRecord(by, record, data, signed)
