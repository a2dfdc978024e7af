"""Signed peer records: what a peer says of its own addresses, so that others can pass it on.

Formats: https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md and 0003-routing-records.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from owm.identity import Identity, PeerId, verify
from owm.net._core_frames import decode_varint, encode_varint
from owm.net._core_multiaddr import decode_multiaddr, encode_multiaddr
from owm.net.errors import ProtocolViolation

__all__ = ["MAX_PEER_RECORD", "PeerRecord", "open_peer_record", "sign_peer_record"]

MAX_PEER_RECORD: Final = 4096  #: bytes of an envelope
_MAX_ADDRESSES: Final = 16
_DOMAIN: Final = b"libp2p-peer-record"
_PAYLOAD_TYPE: Final = b"\x03\x01"
_KEY_HEAD: Final = bytes.fromhex("08011220")  # protobuf {Type: Ed25519, Data: 32 bytes}


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A record whose signature was verified."""

    peer: PeerId
    sequence: int  #: a higher one replaces a lower one
    addresses: tuple[str, ...]  #: without ``/p2p/``; those of kinds that are not known here are left out


def sign_peer_record(identity: Identity, sequence: int, addresses: Sequence[str]) -> bytes:
    """The envelope of our own record; addresses that cannot be written are left out."""
    payload = _field(0x0A, identity.peer_id) + b"\x10" + encode_varint(sequence)
    for address in addresses[:_MAX_ADDRESSES]:
        try:
            payload += _field(0x1A, _field(0x0A, encode_multiaddr(address)))
        except ValueError:
            continue
    signature = identity.sign(_signed(payload))
    key = _KEY_HEAD + identity.public_key
    return _field(0x0A, key) + _field(0x12, _PAYLOAD_TYPE) + _field(0x1A, payload) + _field(0x2A, signature)


def open_peer_record(envelope: bytes) -> PeerRecord:
    """Check an envelope completely: format, signature, and that the signer speaks of itself.

    Raises:
        ValueError: anything is wrong, or the key is not Ed25519.
    """
    if len(envelope) > MAX_PEER_RECORD:
        raise ValueError("a peer record that is too large")
    parts = dict.fromkeys((1, 2, 3, 5), b"")
    for number, value in _fields(envelope):
        if number in parts and isinstance(value, bytes):
            parts[number] = value
    key, payload = parts[1], parts[3]
    if len(key) != 36 or not key.startswith(_KEY_HEAD):
        raise ValueError("a peer record by a key that is not Ed25519")
    if parts[2] != _PAYLOAD_TYPE:
        raise ValueError("an envelope of something else")
    if not verify(key[4:], _signed(payload), parts[5]):
        raise ValueError("a peer record with a bad signature")
    record = _read(payload)
    if record.peer != PeerId.of_key(key[4:]):
        raise ValueError("a peer record about somebody else")
    return record


def _read(payload: bytes) -> PeerRecord:
    peer, sequence = b"", 0
    addresses: dict[str, None] = {}
    for number, value in _fields(payload):
        if number == 1 and isinstance(value, bytes):
            peer = value
        elif number == 2 and isinstance(value, int):
            sequence = value
        elif number == 3 and isinstance(value, bytes):
            for inner, raw in _fields(value):
                if inner == 1 and isinstance(raw, bytes):
                    addresses.update(dict.fromkeys(_address(raw, peer)))
    return PeerRecord(PeerId(peer), sequence, tuple(addresses)[:_MAX_ADDRESSES])


def _address(raw: bytes, peer: bytes) -> Iterable[str]:
    try:
        text = decode_multiaddr(raw)
    except ValueError:
        return ()  # of a kind that nobody here could dial
    address, marker, name = text.rpartition("/p2p/")
    if not marker or name.endswith("/p2p-circuit"):
        return (text,)
    return (address,) if address and name == str(PeerId(peer)) else ()  # py-libp2p ends its addresses with its name


def _signed(payload: bytes) -> bytes:
    return b"".join(encode_varint(len(part)) + part for part in (_DOMAIN, _PAYLOAD_TYPE, payload))


def _field(tag: int, value: bytes) -> bytes:
    return bytes((tag,)) + encode_varint(len(value)) + value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        value, at = _number(data, at)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2 and at + value <= len(data):
            yield tag >> 3, data[at : at + value]
            at += value
        else:
            raise ValueError("a peer record that is cut short or malformed")


def _number(data: bytes, at: int) -> tuple[int, int]:
    try:
        found = decode_varint(data, at)
    except ProtocolViolation as violation:
        raise ValueError(f"a malformed peer record: {violation}") from violation
    if found is None:
        raise ValueError("a peer record that is cut short")
    return found
