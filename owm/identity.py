"""A peer's identity: one Ed25519 seed, from which every key that the peer uses is derived.

The libp2p peer id is the multihash of the public key in libp2p's protobuf form
(https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md). This module knows that format itself,
because importing libp2p costs most of a second and 80 MB that a command-line tool should not pay.
"""

from __future__ import annotations

import os
import stat
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import base58
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import BadSignatureError
from nacl.public import PrivateKey, PublicKey
from nacl.signing import SigningKey, VerifyKey

from owm.errors import IdentityError

__all__ = ["SEED_BYTES", "Identity", "PeerId", "verify"]

SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# Identity multihash (code 0, 36 bytes) of the protobuf {Type: Ed25519, Data: 32 bytes}.
_KEY_PREFIX: Final = bytes.fromhex("08011220")
_ED25519_PREFIX: Final = bytes.fromhex("0024") + _KEY_PREFIX
_SHA256_PREFIX: Final = bytes.fromhex("1220")


class PeerId(bytes):
    """The multihash that names a peer; prints as base58 (``12D3Koo...`` for an Ed25519 key).

    An Ed25519 id contains its public key. Foreign peers may have ids that only hash their key.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> PeerId:
        """Raises ValueError unless ``raw`` is an identity or SHA-256 multihash of a sane length."""
        ed25519 = len(raw) == 38 and raw.startswith(_ED25519_PREFIX)
        hashed = len(raw) == 34 and raw.startswith(_SHA256_PREFIX)
        inlined = 2 < len(raw) <= 44 and raw[0] == 0 and raw[1] == len(raw) - 2
        if not (ed25519 or hashed or inlined):
            raise ValueError("not a peer id: expected the multihash of a public key")
        return super().__new__(cls, raw)

    @classmethod
    def of_key(cls, public_key: bytes) -> PeerId:
        """The id of an Ed25519 public key of 32 bytes."""
        if len(public_key) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")
        return cls(_ED25519_PREFIX + public_key)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read the base58 form; raises ValueError for anything else."""
        if not 2 <= len(text) <= 64:
            raise ValueError(f"not a peer id: {text[:64]!r}")
        return cls(base58.b58decode(text))

    @property
    def public_key(self) -> bytes | None:
        """The 32-byte Ed25519 key inside the id, or None when the id is only a hash."""
        return bytes(self[6:]) if self.startswith(_ED25519_PREFIX) else None

    @property
    def short(self) -> str:
        """The last eight characters, for tables and logs."""
        if len(self) < 34:
            return str(self)[-8:]
        last = int.from_bytes(self, "big") % 58**8  # what str(self) ends in, at a tenth of its cost
        return str(base58.b58encode_int(last), "ascii").rjust(8, "1")

    def __str__(self) -> str:
        return str(base58.b58encode(bytes(self)), "ascii")

    def __repr__(self) -> str:
        return f"<PeerId {self.short}>"


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is the Ed25519 signature of ``message``; malformed input is simply false."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != 32:
        return False
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


class Identity:
    """The keys of one peer, all derived from one 32-byte seed that never leaves the machine."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise IdentityError(f"an identity seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._signing = SigningKey(seed)

    def __repr__(self) -> str:
        return f"<Identity {self.peer_id.short}>"

    @cached_property
    def peer_id(self) -> PeerId:
        return PeerId.of_key(self.public_key)

    @cached_property
    def public_key(self) -> bytes:
        return bytes(self._signing.verify_key)

    @cached_property
    def box_key(self) -> PrivateKey:
        """The X25519 key that task payloads are sealed to."""
        return self._signing.to_curve25519_private_key()

    @property
    def seed(self) -> bytes:
        """The secret itself, for the transport's handshake only. Never log it, never send it."""
        return bytes(self._signing)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature of 64 bytes. Callers separate their domains."""
        return self._signing.sign(message).signature

    def derive(self, label: str) -> bytes:
        """32 secret bytes for one purpose: HKDF-SHA256 of the seed under ``label`` (RFC 5869)."""
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"owm:{label}".encode()).derive(self.seed)

    @classmethod
    def generate(cls) -> Identity:
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a seed file.

        Raises:
            IdentityError: the file is missing, damaged, or others than its owner may read it.
        """
        try:
            mode = path.stat().st_mode
            seed = path.read_bytes()
        except FileNotFoundError as error:
            raise IdentityError(f"no identity at {path}: run `owm init` to create one") from error
        except OSError as error:
            raise IdentityError(f"cannot read the identity {path}: {error.strerror}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise IdentityError(
                f"the identity {path} can be read by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`; "
                "if someone may have copied it, make a new one"
            )
        if len(seed) != SEED_BYTES:
            raise IdentityError(f"the identity {path} is damaged: {len(seed)} bytes instead of {SEED_BYTES}")
        return cls(seed)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the seed file, making it (mode 0600, synced to disk) on the first run (SRS-NODE-02)."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls.load(path)
        except OSError as error:
            raise IdentityError(f"cannot create the identity {path}: {error.strerror}") from error
        identity = cls.generate()
        with os.fdopen(handle, "wb") as file:
            file.write(identity.seed)
            file.flush()
            os.fsync(file.fileno())
        return identity


@lru_cache(maxsize=4096)
def box_key_of(peer: PeerId) -> PublicKey:
    """The X25519 key to seal a payload to ``peer`` with; raises ValueError for ids without an Ed25519 key."""
    key = peer.public_key
    if key is None:
        raise ValueError(f"{peer} has no Ed25519 key to seal to")
    return VerifyKey(key).to_curve25519_public_key()
