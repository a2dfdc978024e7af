"""What a message is called and who vouches for it: our own way, and libp2p's."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from owm.gossip._core_wire import Message, encode_message
from owm.identity import Identity, PeerId, verify
from owm.records import SignedRecord

__all__ = ["is_signed_by_its_author", "record_message_id", "sign_message"]

_SIGN_PREFIX = b"libp2p-pubsub:"
_KEY_HEAD = bytes.fromhex("0a2408011220")
_KEY_PROTOBUF = bytes.fromhex("08011220")


def record_message_id(network_id: str) -> Callable[[Message], bytes]:
    """Names a message by the signed content of its record: issuer, domain, payload type and payload.

    The issuer is part of it: whoever signs another's payload with a key of its own makes a different message and cannot
    keep the first one out. The signature is not: its variants are one message. Only lengths are checked here; an
    envelope that is not canonical gets an id that no valid record has, and validation refuses it.
    """
    domain = f"owm-record:{network_id}".encode()

    def message_id(message: Message) -> bytes:
        data = message.data
        end = len(data) - 66  # tag, length and 64 bytes of signature
        if end < 42 or not data.startswith(_KEY_HEAD) or data[end : end + 2] != b"\x2a\x40":
            raise ValueError("not a signed record")
        return sha256(domain + data[:end]).digest()

    return message_id


def id_of_record(record: SignedRecord, message_id: Callable[[Message], bytes]) -> bytes:
    """The id that the record's message has."""
    return message_id(Message("", record.envelope))


def sign_message(identity: Identity, topic: str, data: bytes, seqno: bytes) -> Message:
    """A message under libp2p's strict signing."""
    bare = Message(topic, data, bytes(identity.peer_id), seqno)
    signature = identity.sign(_SIGN_PREFIX + encode_message(bare))
    return Message(topic, data, bare.sender, seqno, signature)


def is_signed_by_its_author(message: Message) -> bool:
    """Whether a message carries its author's valid Ed25519 signature. Other keys are not known here.

    The key comes from the author's peer id; one sent along must be that same key.
    """
    if message.sender is None or message.signature is None:
        return False
    try:
        key = PeerId(message.sender).public_key
    except ValueError:
        return False
    if key is None or (message.key is not None and message.key != _KEY_PROTOBUF + key):
        return False
    bare = Message(message.topic, message.data, message.sender, message.seqno)
    return verify(key, _SIGN_PREFIX + encode_message(bare), message.signature)
