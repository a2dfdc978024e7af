"""Fuzz target: a Noise handshake with a stranger, and packets after it. ``python -m tests.fuzz.fuzz_noise``."""

from __future__ import annotations

from contextlib import suppress

from owm.identity import Identity
from owm.net._core_noise import HandshakeFailed, NoiseHandshake, NoiseSession, PacketDamaged

_OWN = Identity(bytes(32)).peer_id


def fuzz_one(data: bytes) -> None:
    """Only HandshakeFailed and PacketDamaged may come out, and no stranger is let in or read."""
    for initiator in (True, False):
        handshake = NoiseHandshake(_OWN, bytes([7]) * 32, b"payload", initiator=initiator)
        handshake.begin()
        with suppress(HandshakeFailed):
            handshake.receive(data)
        assert handshake.session is None
        assert handshake.remote is None
    with suppress(PacketDamaged):
        assert NoiseSession(bytes(32), bytes([1]) * 32).open(data) == b""


if __name__ == "__main__":
    from tests.fuzz import main

    main(fuzz_one)
