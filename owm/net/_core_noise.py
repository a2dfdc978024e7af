"""Noise for libp2p: the XX handshake with signed static keys, then sealed packets. Bytes in, bytes out; no I/O.

Specification: https://github.com/libp2p/specs/blob/master/noise/README.md. The handshake's state machine is that of
``noiseprotocol``, as in py-libp2p; packets after it are sealed here. Packets carry their length in two bytes,
so no length that a stranger announces can exceed 64 KiB.
"""

from __future__ import annotations

from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.peer.id import ID
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload
from noise.connection import Keypair, NoiseConnection

from owm.identity import PeerId, verify

__all__ = ["HandshakeFailed", "NoiseHandshake", "NoiseSession", "PacketDamaged", "WrongPeer", "handshake_payload"]

_PROTOCOL: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
_DOMAIN: Final = b"noise-libp2p-static-key:"
_PUBLIC_KEY_PREFIX: Final = bytes.fromhex("08011220")  # protobuf {Type: Ed25519, Data: 32 bytes}
_MAX_PLAINTEXT: Final = 65535 - 16
_MAX_HANDSHAKE_MESSAGE: Final = 4096  # an RSA-4096 key and its signature fit three times
_LAST_NONCE: Final = 2**64 - 2


class HandshakeFailed(Exception):
    """The peer did not authenticate."""


class WrongPeer(HandshakeFailed):
    """The peer proved to be somebody else than expected."""

    def __init__(self, remote: PeerId) -> None:
        super().__init__(f"wrong peer id: {remote} answered")
        self.remote = remote


class PacketDamaged(Exception):
    """A packet was forged, replayed, reordered or reflected: the connection must end."""


class _Key(Protocol):
    def sign(self, message: bytes) -> bytes: ...
    @property
    def public_key(self) -> bytes: ...


def handshake_payload(identity: _Key, static_public: bytes, muxer: str) -> bytes:
    """What we say in each handshake: who we are, our signature of the static key, the muxer that we speak."""
    key = _PUBLIC_KEY_PREFIX + identity.public_key
    signature = identity.sign(_DOMAIN + static_public)
    payload = NoiseHandshakePayload(identity_key=key, identity_sig=signature)
    payload.extensions.stream_muxers.append(muxer)
    return bytes(payload.SerializeToString())


class NoiseSession:
    """Sealed packets in both directions, each with its own key and counter."""

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._seal = ChaCha20Poly1305(send_key).encrypt
        self._open = ChaCha20Poly1305(receive_key).decrypt
        self._sent = self._received = 0
        self._rest = b""

    def seal(self, plaintext: bytes) -> bytes:
        """The packets that carry ``plaintext``."""
        if len(plaintext) <= _MAX_PLAINTEXT:
            return self._packet(plaintext)
        view = memoryview(plaintext)
        return b"".join(
            self._packet(bytes(view[at : at + _MAX_PLAINTEXT])) for at in range(0, len(view), _MAX_PLAINTEXT)
        )

    def open(self, data: bytes) -> bytes:
        """Take in bytes, cut anywhere; returns the plaintext of the packets that are complete.

        Raises:
            PacketDamaged: a packet is not what the peer sealed next.
        """
        buffer = self._rest + data if self._rest else data
        plain: list[bytes] = []
        at, end = 0, len(buffer)
        try:
            while end - at >= 2:
                stop = at + 2 + (buffer[at] << 8 | buffer[at + 1])
                if stop > end:
                    break
                nonce = b"\0\0\0\0" + self._received.to_bytes(8, "little")
                plain.append(self._open(nonce, buffer[at + 2 : stop], None))
                self._received += 1
                at = stop
        except InvalidTag:
            raise PacketDamaged("a packet that the peer did not seal, or not in this place") from None
        self._rest = buffer[at:]
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def _packet(self, plaintext: bytes) -> bytes:
        if self._sent > _LAST_NONCE:
            raise PacketDamaged("all nonces of the connection were used")
        sealed = self._seal(b"\0\0\0\0" + self._sent.to_bytes(8, "little"), plaintext, None)
        self._sent += 1
        return len(sealed).to_bytes(2, "big") + sealed


class NoiseHandshake:
    """One XX handshake.

    ::

        initiator                    responder
            | ---- e ------------------> |
            | <--- e, ee, s, es, payload |
            | ---- s, se, payload -----> |

    Args:
        own: our id, so that we notice when we talk to ourselves.
        static_private: the X25519 key of this process, 32 bytes.
        payload: of :func:`handshake_payload`.
        initiator: whether we dialled.
        expected: whom we want to reach; None accepts whoever answers.
    """

    def __init__(
        self, own: PeerId, static_private: bytes, payload: bytes, *, initiator: bool, expected: PeerId | None = None
    ) -> None:
        self._own = own
        self._payload = payload
        self._initiator = initiator
        self._expected = expected
        self._state = NoiseConnection.from_name(_PROTOCOL)
        self._state.set_keypair_from_private_bytes(Keypair.STATIC, static_private)
        (self._state.set_as_initiator if initiator else self._state.set_as_responder)()
        self._state.start_handshake()
        self._keys = self._state.noise_protocol.handshake_state  # the library forgets it when the handshake is done
        self._buffer = b""
        self._messages = 0
        self.remote: PeerId | None = None  #: who the peer proved to be
        self.remote_muxers: tuple[str, ...] = ()  #: what it speaks, if it said so
        self.session: NoiseSession | None = None  #: set when the handshake is complete

    @property
    def rest(self) -> bytes:
        """Bytes received after the handshake's end."""
        return self._buffer

    def begin(self) -> bytes:
        """What to send first; nothing for the responder."""
        return self._write(b"") if self._initiator else b""

    def receive(self, data: bytes) -> bytes:
        """Take in bytes; returns what to send. Complete when :attr:`session` is set.

        Raises:
            HandshakeFailed: the peer did not authenticate, is somebody else, or is ourselves.
        """
        self._buffer += data
        out = b""
        while self.session is None and len(self._buffer) >= 2:
            size = int.from_bytes(self._buffer[:2], "big")
            if size > _MAX_HANDSHAKE_MESSAGE:
                raise HandshakeFailed(f"a handshake message of {size} bytes")
            if len(self._buffer) < 2 + size:
                break
            message, self._buffer = self._buffer[2 : 2 + size], self._buffer[2 + size :]
            out += self._step(message)
        return out

    def _step(self, message: bytes) -> bytes:
        try:
            payload = bytes(self._state.read_message(message))
        except Exception as error:
            raise HandshakeFailed(f"a handshake message that makes no sense ({type(error).__name__})") from error
        self._messages += 1
        if not self._initiator and self._messages == 1:
            return self._write(self._payload)
        self._authenticate(payload)
        out = self._write(self._payload) if self._initiator else b""
        state = self._state.noise_protocol
        self.session = NoiseSession(bytes(state.cipher_state_encrypt.k), bytes(state.cipher_state_decrypt.k))
        return out

    def _write(self, payload: bytes) -> bytes:
        message = bytes(self._state.write_message(payload))
        return len(message).to_bytes(2, "big") + message

    def _authenticate(self, raw: bytes) -> None:
        static = self._keys.rs.public_bytes
        try:
            payload = NoiseHandshakePayload.FromString(raw)
            remote = _signer(payload.identity_key, _DOMAIN + static, payload.identity_sig)
            muxers = tuple(payload.extensions.stream_muxers)
        except HandshakeFailed:
            raise
        except Exception as error:
            raise HandshakeFailed(f"an identity that makes no sense ({type(error).__name__})") from error
        if remote == self._own:
            raise HandshakeFailed("we reached ourselves: the other side has our own identity key")
        if self._expected is not None and remote != self._expected:
            raise WrongPeer(remote)
        self.remote, self.remote_muxers = remote, muxers


def _signer(key: bytes, message: bytes, signature: bytes) -> PeerId:
    """The id of who signed; Ed25519 here, the other key types of foreign peers by libp2p."""
    if len(key) == 36 and key.startswith(_PUBLIC_KEY_PREFIX):
        if not verify(key[4:], message, signature):
            raise HandshakeFailed("the peer's signature is wrong")
        return PeerId.of_key(key[4:])
    public = deserialize_public_key(key)
    if not public.verify(message, signature):
        raise HandshakeFailed("the peer's signature is wrong")
    return PeerId(ID.from_pubkey(public).to_bytes())
