"""Turns a byte stream into an authenticated, sealed one on which both sides will speak Yamux."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from owm.identity import Identity, PeerId
from owm.net._core_multistream import Listening, MultistreamError, Proposing
from owm.net._core_noise import HandshakeFailed, NoiseHandshake, NoiseSession, PacketDamaged, handshake_payload

__all__ = ["Credentials", "Secured", "secure"]

_NOISE: Final = "/noise"
_YAMUX: Final = "/yamux/1.0.0"
_CHUNK: Final = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process shows in each of its handshakes."""

    peer_id: PeerId
    static_private: bytes = field(repr=False)  #: X25519
    payload: bytes = field(repr=False)

    @classmethod
    def of(cls, identity: Identity) -> Self:
        """A fresh static key, signed once: signing costs as much as the rest of a handshake's arithmetic."""
        key = X25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        return cls(identity.peer_id, key.private_bytes_raw(), handshake_payload(identity, public, _YAMUX))


@dataclass(frozen=True, slots=True)
class Secured:
    """A finished handshake."""

    remote: PeerId
    session: NoiseSession
    rest: bytes  #: plaintext that came along with the last message


async def secure(
    stream: trio.abc.Stream, credentials: Credentials, *, initiator: bool, expected: PeerId | None = None
) -> Secured:
    """Negotiate Noise, authenticate, agree on Yamux. The caller sets the deadline and closes the stream on failure.

    Raises:
        HandshakeFailed: the peer did not authenticate or is somebody else (then it is a WrongPeer).
        trio.BrokenResourceError: the connection broke.
    """
    try:
        rest = await _agree(stream, _NOISE, initiator)
        handshake = NoiseHandshake(
            credentials.peer_id, credentials.static_private, credentials.payload, initiator=initiator, expected=expected
        )
        out = handshake.begin()
        if rest:
            out += handshake.receive(rest)
        while handshake.session is None:
            if out:
                await stream.send_all(out)
            out = handshake.receive(await _more(stream))
        if out:
            await stream.send_all(out)
        session, remote = handshake.session, handshake.remote
        assert remote is not None
        plain = session.open(handshake.rest)
        if _YAMUX not in handshake.remote_muxers:
            plain = await _agree(stream, _YAMUX, initiator, session, plain)
    except (MultistreamError, PacketDamaged) as error:
        raise HandshakeFailed(str(error)) from error
    return Secured(remote, session, plain)


async def _agree(
    stream: trio.abc.Stream, protocol: str, initiator: bool, session: NoiseSession | None = None, rest: bytes = b""
) -> bytes:
    """multistream-select for one protocol, sealed once there is a session; returns what came after it."""
    negotiation = Proposing([protocol]) if initiator else Listening(protocol.__eq__)
    out = negotiation.begin() if isinstance(negotiation, Proposing) else b""
    while negotiation.selected is None:
        if out:
            await stream.send_all(session.seal(out) if session else out)
        data = rest
        if not data:
            data = await _more(stream)
            data = session.open(data) if session else data
        rest = b""
        out = negotiation.receive(data)
        if isinstance(negotiation, Proposing) and negotiation.refused:
            raise HandshakeFailed(f"the peer does not speak {protocol}")
    if out:
        await stream.send_all(session.seal(out) if session else out)
    return negotiation.rest


async def _more(stream: trio.abc.Stream) -> bytes:
    data = await stream.receive_some(_CHUNK)
    if not data:
        raise HandshakeFailed("the peer closed the connection during the handshake")
    return bytes(data)
