"""libp2p's kad-dht protobuf, read and written by hand.

Schema: https://github.com/libp2p/specs/tree/master/kad-dht. Unknown fields are skipped, as protobuf demands; anything
malformed or beyond the limits raises :class:`WireError`. Addresses of transports unknown here are left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from owm.dht._core_types import Contact, Message, MessageType
from owm.net._core_multiaddr import MAX_MULTIADDR, decode_multiaddr, encode_multiaddr

__all__ = ["MAX_MESSAGE", "WireError", "decode_message", "encode_message"]

MAX_MESSAGE: Final = 256 * 1024  #: bytes of a whole message
MAX_PEERS: Final = 256  #: peers in one list of a message
MAX_ADDRESSES: Final = 16  #: addresses kept of one peer
_MAX_ID: Final = 64
_MAX_PEER: Final = 16 * 1024  # bytes of one peer; foreign ones list dozens of addresses of a hundred bytes each
_MAX_KEPT: Final = 512  # bytes of a peer that is remembered: whoever is longer pays for decoding it each time
_MAX_FIELDS: Final = 4096

_SENDER: Final = 100  # ours: the sender as Peer, on the first message of a stream
_PROOF: Final = 101  # ours: the answer to the puzzle for servers

_TYPES: Final = {int(kind): kind for kind in MessageType}


class WireError(ValueError):
    """Bytes that are not a kad-dht message, or more than is allowed."""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _encode_peer(contact: Contact) -> bytes:
    if contact.wire is not None:
        return contact.wire
    out = b"\x0a" + _varint(len(contact.id)) + contact.id
    for address in contact.addresses[:MAX_ADDRESSES]:
        try:
            raw = encode_multiaddr(address)
        except ValueError:
            continue  # an address that kad-dht cannot say here
        out += b"\x12" + _varint(len(raw)) + raw
    contact.wire = out
    return out


def encode_message(message: Message) -> bytes:
    """The message's protobuf, without a length prefix."""
    parts: list[bytes] = []
    if message.type:
        parts.append(b"\x08" + _varint(message.type))
    if message.key:
        parts.append(_field(2, message.key))
    if message.value is not None:
        parts.append(_field(3, _field(1, message.key) + _field(2, message.value)))
    parts.extend(_field(8, _encode_peer(contact)) for contact in message.closer)
    parts.extend(_field(9, _encode_peer(contact)) for contact in message.providers)
    if message.sender is not None:
        parts.append(_field(_SENDER, _encode_peer(message.sender)))
    if message.proof:
        parts.append(_field(_PROOF, message.proof))
    return b"".join(parts)


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError("a bad number in the message")


def _fields(data: bytes, at: int, end: int) -> list[tuple[int, int, int, int]]:
    """(number, value or 0, start, end) of every field; groups, which protobuf has dropped, are refused."""
    found: list[tuple[int, int, int, int]] = []
    while at < end:
        tag = data[at]
        if tag < 0x80:
            at += 1
        else:
            tag, at = _read_varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise WireError("a field without a number")
        if kind == 2:
            size, at = _read_varint(data, at, end)
            if size > end - at:
                raise WireError("the message is cut short")
            found.append((number, 0, at, at + size))
            at += size
        elif kind == 0:
            value, at = _read_varint(data, at, end)
            found.append((number, value, at, -1))
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > end:
                raise WireError("the message is cut short")
        else:
            raise WireError("a field of an unknown wire type")
        if len(found) > _MAX_FIELDS:
            raise WireError("too many fields")
    return found


def _decode_peer(data: bytes, at: int, end: int) -> Contact:
    if end - at > _MAX_PEER:
        raise WireError(f"a peer of {end - at} bytes")
    peer = data[at:end]
    return _known_peer(peer) if end - at <= _MAX_KEPT else _read_peer(peer)


@lru_cache(maxsize=4096)  # answers name the same peers again and again
def _known_peer(data: bytes) -> Contact:
    return _read_peer(data)


def _read_peer(data: bytes) -> Contact:
    peer = b""
    addresses: list[str] = []
    for number, _, at, stop in _fields(data, 0, len(data)):
        if stop < 0:
            continue
        if number == 1:
            if not 2 < stop - at <= _MAX_ID:
                raise WireError("a peer id of a bad length")
            peer = data[at:stop]
        elif number == 2 and len(addresses) < MAX_ADDRESSES and stop - at <= MAX_MULTIADDR:
            try:
                addresses.append(decode_multiaddr(data[at:stop]))
            except ValueError:
                continue  # another transport's, or nonsense: either way it cannot be dialled
    if not peer:
        raise WireError("a peer without an id")
    return Contact(peer, tuple(addresses))


def decode_message(data: bytes) -> Message:
    """Read a message's protobuf; raises WireError."""
    size = len(data)
    if size > MAX_MESSAGE:
        raise WireError(f"a message of {size} bytes; at most {MAX_MESSAGE} are allowed")
    kind = 0
    key = record_key = proof = b""
    value: bytes | None = None
    sender: Contact | None = None
    closer: list[Contact] = []
    providers: list[Contact] = []
    for number, number_value, start, end in _fields(data, 0, size):
        if number == 1 and end < 0:
            kind = number_value
        elif end < 0:
            continue
        elif number == 2:
            key = data[start:end]
        elif number == 3:
            for inner, _, at, stop in _fields(data, start, end):
                if inner == 1 and stop >= 0:
                    record_key = data[at:stop]
                elif inner == 2 and stop >= 0:
                    value = data[at:stop]
        elif number in (8, 9):
            peers = closer if number == 8 else providers
            if len(peers) >= MAX_PEERS:
                raise WireError("too many peers in a message")
            peers.append(_decode_peer(data, start, end))
        elif number == _SENDER:
            sender = _decode_peer(data, start, end)
        elif number == _PROOF:
            proof = data[start:end]
    type_ = _TYPES.get(kind)
    if type_ is None:
        raise WireError(f"unknown message type {kind}")
    if value is not None and record_key != key:
        if key:
            raise WireError("the record's key is not the message's")
        key = record_key
    return Message(type_, key, value, tuple(closer), tuple(providers), sender, proof)
