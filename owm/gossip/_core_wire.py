"""GossipSub's RPC on the wire: protobuf written and read by hand, strictly and within bounds.

The schema is that of https://github.com/libp2p/specs/blob/master/pubsub/README.md with the control messages of
gossipsub v1.1 and v1.2. Unknown fields are skipped; a known field of the wrong wire type is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from owm.net.errors import ProtocolViolation

__all__ = ["Message", "Prune", "Rpc", "RpcDecoder", "encode_message"]

_MAX_ITEMS: Final = 20_000  # items of all kinds in one RPC: 1 MiB of empty ones would be half a million objects
_MAX_VARINT: Final = 10
_KNOWN_BYTES: Final = 1 << 17  # of messages that are kept to recognise their copies by, twice that at most
_KNOWN_MESSAGE: Final = 1 << 13  # bytes of the largest of them
_RPC_FIELDS: Final = {1: 2, 2: 2, 3: 2}
_MESSAGE_FIELDS: Final = dict.fromkeys(range(1, 7), 2)


class Message:
    """One message of a topic. ``sender``, ``seqno``, ``signature`` and ``key`` are absent on our own networks."""

    __slots__ = ("data", "encoded", "id", "key", "sender", "seqno", "signature", "topic")

    def __init__(
        self,
        topic: str,
        data: bytes,
        sender: bytes | None = None,
        seqno: bytes | None = None,
        signature: bytes | None = None,
        key: bytes | None = None,
    ) -> None:
        self.topic = topic
        self.data = data
        self.sender = sender
        self.seqno = seqno
        self.signature = signature
        self.key = key
        self.id = b""  #: set by the core
        self.encoded: bytes | None = None  #: as last sent, so that relaying encodes once

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Message {self.id.hex()[:8]} of {self.topic}, {len(self.data)} bytes>"

    def _fields(self) -> tuple[object, ...]:
        return self.topic, self.data, self.sender, self.seqno, self.signature, self.key


class Prune:
    """Leave my mesh, for ``backoff`` seconds; here are others: pairs of peer id and signed peer record."""

    __slots__ = ("backoff", "peers", "topic")

    def __init__(self, topic: str, backoff: int = 0, peers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.topic = topic
        self.backoff = backoff
        self.peers = peers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prune) and (self.topic, self.backoff, self.peers) == (
            other.topic,
            other.backoff,
            other.peers,
        )

    __hash__ = None  # type: ignore[assignment]


class Rpc:
    """What one peer sends another at once; every part may be empty."""

    __slots__ = ("_encoded", "graft", "idontwant", "ihave", "iwant", "prune", "publish", "subscriptions")

    def __init__(
        self,
        *,
        subscriptions: tuple[tuple[str, bool], ...] = (),
        publish: tuple[Message, ...] = (),
        ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = (),
        iwant: tuple[bytes, ...] = (),
        graft: tuple[str, ...] = (),
        prune: tuple[Prune, ...] = (),
        idontwant: tuple[bytes, ...] = (),
    ) -> None:
        self.subscriptions = subscriptions
        self.publish = publish
        self.ihave = ihave
        self.iwant = iwant
        self.graft = graft
        self.prune = prune
        self.idontwant = idontwant
        self._encoded: bytes | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rpc) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = ("subscriptions", "publish", "ihave", "iwant", "graft", "prune", "idontwant")
        return f"<Rpc {', '.join(f'{name} {len(getattr(self, name))}' for name in names if getattr(self, name))}>"

    def _fields(self) -> tuple[object, ...]:
        return (
            self.subscriptions,
            self.publish,
            self.ihave,
            self.iwant,
            self.graft,
            self.prune,
            self.idontwant,
        )

    def encode(self) -> bytes:
        """The protobuf form; kept, because one RPC often goes to several peers."""
        if self._encoded is None:
            out = bytearray()
            for topic, joins in self.subscriptions:
                _put(out, 0x0A, (b"\x08\x01" if joins else b"\x08\x00") + _field(0x12, topic.encode()))
            for message in self.publish:
                _put(out, 0x12, encode_message(message))
            control = self._encode_control()
            if control:
                _put(out, 0x1A, control)
            self._encoded = bytes(out)
        return self._encoded

    def _encode_control(self) -> bytes:
        out = bytearray()
        for topic, ids in self.ihave:
            _put(out, 0x0A, _field(0x0A, topic.encode()) + b"".join([_field(0x12, id_) for id_ in ids]))
        if self.iwant:
            _put(out, 0x12, b"".join([_field(0x0A, id_) for id_ in self.iwant]))
        for topic in self.graft:
            _put(out, 0x1A, _field(0x0A, topic.encode()))
        for prune in self.prune:
            body = bytearray(_field(0x0A, prune.topic.encode()))
            for peer, record in prune.peers:
                _put(body, 0x12, _field(0x0A, peer) + (_field(0x12, record) if record else b""))
            if prune.backoff:
                body += b"\x18" + _varint(prune.backoff)
            _put(out, 0x22, body)
        if self.idontwant:
            _put(out, 0x2A, b"".join([_field(0x0A, id_) for id_ in self.idontwant]))
        return bytes(out)


def encode_message(message: Message) -> bytes:
    """The protobuf form of a message, kept with it."""
    if message.encoded is None:
        out = bytearray()
        if message.sender is not None:
            _put(out, 0x0A, message.sender)
        _put(out, 0x12, message.data)
        if message.seqno is not None:
            _put(out, 0x1A, message.seqno)
        _put(out, 0x22, message.topic.encode())
        if message.signature is not None:
            _put(out, 0x2A, message.signature)
        if message.key is not None:
            _put(out, 0x32, message.key)
        message.encoded = bytes(out)
    return message.encoded


class RpcDecoder:
    """Reads the RPCs that come to one peer. The copies of a message, several for each, come out as one object."""

    __slots__ = ("_new", "_old", "_size")

    def __init__(self) -> None:
        self._new: dict[bytes, Message] = {}  # by their bytes; in two generations, as in SeenCache
        self._old: dict[bytes, Message] = {}
        self._size = 0

    def decode(self, data: bytes) -> Rpc:
        """Read an RPC; the caller has bounded its size.

        Raises:
            ProtocolViolation: anything but what the schema allows, or more items than anybody needs.
        """
        budget = [_MAX_ITEMS]
        subscriptions: list[tuple[str, bool]] = []
        publish: list[Message] = []
        control: list[bytes] = []
        for number, value in _fields(data, budget, _RPC_FIELDS):
            if number == 2:
                publish.append(self._new.get(value) or self._old.get(value) or self._decode_message(value, budget))
            elif number == 1:
                subscriptions.append(_decode_subscription(value, budget))
            else:
                control.append(value)
        rpc = Rpc(subscriptions=tuple(subscriptions), publish=tuple(publish))
        if control:
            _decode_control(b"".join(control), rpc, budget)  # protobuf merges repeated messages by joining them
        return rpc

    def _decode_message(self, data: bytes, budget: list[int]) -> Message:
        message = _decode_message(data, budget)
        if len(data) <= _KNOWN_MESSAGE:
            if self._size + len(data) > _KNOWN_BYTES:
                self._old, self._new, self._size = self._new, {}, 0
            self._new[data] = message
            self._size += len(data)
        return message


def _decode_control(data: bytes, rpc: Rpc, budget: list[int]) -> None:
    ihave: list[tuple[str, tuple[bytes, ...]]] = []
    iwant: list[bytes] = []
    graft: list[str] = []
    prune: list[Prune] = []
    idontwant: list[bytes] = []
    for number, value in _fields(data, budget, {1: 2, 2: 2, 3: 2, 4: 2, 5: 2}):
        if number == 1:
            topic, ids = "", []
            for inner, item in _fields(value, budget, {1: 2, 2: 2}):
                if inner == 1:
                    topic = _text(item)
                else:
                    ids.append(item)
            ihave.append((topic, tuple(ids)))
        elif number == 2:
            iwant.extend(item for _, item in _fields(value, budget, {1: 2}))
        elif number == 3:
            graft.append(next((_text(item) for _, item in _fields(value, budget, {1: 2})), ""))
        elif number == 4:
            prune.append(_decode_prune(value, budget))
        else:
            idontwant.extend(item for _, item in _fields(value, budget, {1: 2}))
    rpc.ihave, rpc.iwant, rpc.graft = tuple(ihave), tuple(iwant), tuple(graft)
    rpc.prune, rpc.idontwant = tuple(prune), tuple(idontwant)


def _decode_subscription(data: bytes, budget: list[int]) -> tuple[str, bool]:
    topic, joins = "", False
    for number, value in _fields(data, budget, {1: 0, 2: 2}):
        if number == 1:
            joins = value != b""
        else:
            topic = _text(value)
    return topic, joins


def _decode_message(data: bytes, budget: list[int]) -> Message:
    parts: list[bytes | None] = [None] * 7
    for number, value in _fields(data, budget, _MESSAGE_FIELDS):
        parts[number] = value
    topic = parts[4]
    if topic is None:
        raise ProtocolViolation("a message without a topic")
    return Message(_text(topic), parts[2] or b"", parts[1], parts[3], parts[5], parts[6])


def _decode_prune(data: bytes, budget: list[int]) -> Prune:
    topic, backoff = "", 0
    peers: list[tuple[bytes, bytes]] = []
    for number, value in _fields(data, budget, {1: 2, 2: 2, 3: 0}):
        if number == 1:
            topic = _text(value)
        elif number == 3:
            backoff = int.from_bytes(value, "big")
        else:
            peer = record = b""
            for inner, item in _fields(value, budget, {1: 2, 2: 2}):
                peer, record = (item, record) if inner == 1 else (peer, item)
            peers.append((peer, record))
    return Prune(topic, backoff, tuple(peers))


def _fields(data: bytes, budget: list[int], known: dict[int, int]) -> Iterator[tuple[int, bytes]]:
    """Each known field with its bytes; a number comes as big-endian bytes without leading zeros (0 is empty)."""
    offset, end = 0, len(data)
    while offset < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise ProtocolViolation(f"more than {_MAX_ITEMS} items in one RPC")
        tag, offset = _read_varint(data, offset)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ProtocolViolation("field number 0")
        wanted = known.get(number)
        if wanted is not None and wanted != kind:
            raise ProtocolViolation(f"field {number} has wire type {kind}")
        if kind == 2:
            length, offset = _read_varint(data, offset)
            start, offset = offset, offset + length
        elif kind == 0:
            value, offset = _read_varint(data, offset)
            if wanted is not None:
                yield number, value.to_bytes((value.bit_length() + 7) // 8, "big")
            continue
        elif kind in (1, 5):
            start, offset = offset, offset + (8 if kind == 1 else 4)
        else:
            raise ProtocolViolation(f"wire type {kind}")
        if offset > end:
            raise ProtocolViolation("an RPC is cut short")
        if wanted is not None:
            yield number, data[start:offset]


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    try:
        byte = data[offset]
        if byte < 0x80:
            return byte, offset + 1
        value, shift = byte & 0x7F, 7
        for position in range(offset + 1, offset + _MAX_VARINT):
            byte = data[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position + 1
            shift += 7
    except IndexError:
        raise ProtocolViolation("an RPC is cut short") from None
    raise ProtocolViolation("a number of more than 64 bits")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ProtocolViolation("a topic that is not UTF-8") from None


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, value: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(value)) + value


def _put(out: bytearray, tag: int, value: bytes | bytearray) -> None:
    out.append(tag)
    out += _varint(len(value))
    out += value
