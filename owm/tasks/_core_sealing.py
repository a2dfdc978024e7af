"""Sealed payloads (SRS-SEC-02): two libsodium secretstreams per task, one each way.

The requester makes an ephemeral X25519 key for the task; the shared secret with the worker's long-term key gives both
stream keys by HKDF-SHA256 (RFC 5869). Network, task, both peers and the expiry are part of what is derived from, so a
frame means nothing in any other place. The last frame of each direction carries the final tag: a cut is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

import nacl.bindings as sodium
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from owm.identity import Identity, PeerId, box_key_of
from owm.tasks.errors import SealBroken

__all__ = ["Binding", "Opener", "Sealer", "requester_keys", "worker_keys"]

_FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
OVERHEAD = sodium.crypto_secretstream_xchacha20poly1305_ABYTES


@dataclass(frozen=True, slots=True)
class Binding:
    """What a task's keys are bound to."""

    network_id: str
    task: bytes
    requester: PeerId
    worker: PeerId
    expires: int  #: unix milliseconds

    def encode(self) -> bytes:
        parts = (self.network_id.encode(), self.task, bytes(self.requester), bytes(self.worker))
        return b"owm-task-keys/1" + b"".join(
            len(part).to_bytes(2, "big") + part for part in (*parts, self.expires.to_bytes(8, "big"))
        )


def _derive(shared: bytes, ephemeral: bytes, binding: Binding) -> tuple[bytes, bytes]:
    keys = HKDF(algorithm=SHA256(), length=64, salt=ephemeral, info=binding.encode()).derive(shared)
    return keys[:32], keys[32:]


def requester_keys(secret: bytes, binding: Binding) -> tuple[bytes, bytes, bytes]:
    """The requester's side, from 32 fresh secret bytes: (public ephemeral key, key to send with, key to receive with).

    Raises:
        SealBroken: the worker's id has no usable Ed25519 key.
    """
    public = sodium.crypto_scalarmult_base(secret)
    try:
        shared = sodium.crypto_scalarmult(secret, bytes(box_key_of(binding.worker)))
    except (ValueError, RuntimeError) as error:
        raise SealBroken("nothing can be sealed to this worker's key") from error
    forth, back = _derive(shared, public, binding)
    return public, forth, back


def worker_keys(identity: Identity, ephemeral: bytes, binding: Binding) -> tuple[bytes, bytes]:
    """The worker's side: (key to receive with, key to send with); raises SealBroken for a weak ephemeral key."""
    try:
        shared = sodium.crypto_scalarmult(bytes(identity.box_key), ephemeral)
    except (ValueError, RuntimeError) as error:
        raise SealBroken("the ephemeral key is not usable") from error
    return _derive(shared, ephemeral, binding)


class Sealer:
    """The sending end of one direction; ``header`` goes to the other side first, in the open."""

    def __init__(self, key: bytes) -> None:
        self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
        self.header: bytes = sodium.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)

    def seal(self, plain: bytes, *, last: bool = False) -> bytes:
        """Encrypt the next frame."""
        tag = _FINAL if last else _MESSAGE
        return sodium.crypto_secretstream_xchacha20poly1305_push(self._state, plain, None, tag)


class Opener:
    """The receiving end of one direction; after the frame marked last it takes no more."""

    def __init__(self, key: bytes, header: bytes) -> None:
        self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
        self.finished = False
        try:
            sodium.crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, key)
        except (ValueError, RuntimeError) as error:
            raise SealBroken("a sealed stream has a bad header") from error

    def open(self, frame: bytes) -> bytes:
        """Decrypt the next frame; raises SealBroken when it is not the one that was sent next."""
        if self.finished:
            raise SealBroken("a frame follows the last one")
        if len(frame) < OVERHEAD:
            raise SealBroken("a sealed frame is too short")
        try:
            plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(self._state, frame, None)
        except (ValueError, RuntimeError) as error:
            raise SealBroken("a sealed frame was changed, reordered or lost") from error
        if tag not in (_MESSAGE, _FINAL):
            raise SealBroken("a sealed frame has an unknown tag")
        self.finished = tag == _FINAL
        return bytes(plain)

    def end(self) -> None:
        """The stream ended; raises SealBroken unless the last frame had come."""
        if not self.finished:
            raise SealBroken("a sealed stream was cut off")
