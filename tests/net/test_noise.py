"""Noise: who answers is who signed, and no packet is accepted that was not sealed next."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.rsa import create_new_key_pair
from libp2p.crypto.x25519 import X25519PublicKey
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig

from owm.identity import Identity, PeerId
from owm.net._core_noise import (
    HandshakeFailed,
    NoiseHandshake,
    NoiseSession,
    PacketDamaged,
    WrongPeer,
    handshake_payload,
)

ALICE, BOB, EVE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
MUXER = "/yamux/1.0.0"


def end(
    identity: Identity, *, initiator: bool, expected: PeerId | None = None, payload: bytes | None = None
) -> NoiseHandshake:
    key = X25519PrivateKey.generate()
    said = handshake_payload(identity, key.public_key().public_bytes_raw(), MUXER) if payload is None else payload
    return NoiseHandshake(identity.peer_id, key.private_bytes_raw(), said, initiator=initiator, expected=expected)


def shake(a: NoiseHandshake, b: NoiseHandshake, cut: int = 1000) -> tuple[NoiseSession, NoiseSession]:
    wire, target, other = a.begin(), b, a
    while wire:
        wire = b"".join(target.receive(wire[at : at + cut]) for at in range(0, len(wire), cut))
        target, other = other, target
    assert a.session is not None
    assert b.session is not None
    return a.session, b.session


def sessions() -> tuple[NoiseSession, NoiseSession]:
    one, two = bytes(32), bytes([1]) * 32
    return NoiseSession(one, two), NoiseSession(two, one)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_both_learn_who_the_other_is_and_what_it_speaks(cut: int) -> None:
    a, b = end(ALICE, initiator=True, expected=BOB.peer_id), end(BOB, initiator=False)
    here, there = shake(a, b, cut)
    assert (a.remote, b.remote) == (BOB.peer_id, ALICE.peer_id)
    assert a.remote_muxers == b.remote_muxers == (MUXER,)
    assert there.open(here.seal(b"to bob")) == b"to bob"
    assert here.open(there.seal(b"to alice")) == b"to alice"


def test_a_foreign_peer_with_an_rsa_key_is_known_by_the_hash_of_it() -> None:
    keys, static = create_new_key_pair(2048), X25519PrivateKey.generate()
    public = X25519PublicKey.from_bytes(static.public_key().public_bytes_raw())
    payload = NoiseHandshakePayload(keys.public_key, make_handshake_payload_sig(keys.private_key, public)).serialize()
    foreign = NoiseHandshake(EVE.peer_id, static.private_bytes_raw(), payload, initiator=False)
    ours = end(ALICE, initiator=True)
    shake(ours, foreign)
    assert ours.remote == PeerId(ID.from_pubkey(keys.public_key).to_bytes())
    assert ours.remote.public_key is None
    assert ours.remote_muxers == ()


def test_another_peer_than_expected_is_refused_by_name() -> None:
    with pytest.raises(WrongPeer) as refusal:
        shake(end(ALICE, initiator=True, expected=BOB.peer_id), end(EVE, initiator=False))
    assert refusal.value.remote == EVE.peer_id


def test_nobody_passes_with_the_name_of_another() -> None:
    eve = X25519PrivateKey.generate().public_key().public_bytes_raw()
    stolen = handshake_payload(BOB, eve, MUXER)  # Bob's own words, for another static key than Eve uses
    with pytest.raises(HandshakeFailed, match="signature"):
        shake(end(ALICE, initiator=True, expected=BOB.peer_id), end(EVE, initiator=False, payload=stolen))


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, b"\x0a\x00\x12\x00"])
def test_nobody_passes_without_a_name(payload: bytes) -> None:
    with pytest.raises(HandshakeFailed):
        shake(end(ALICE, initiator=True), end(EVE, initiator=False, payload=payload))


def test_ourselves_are_noticed() -> None:
    with pytest.raises(HandshakeFailed, match="ourselves"):
        shake(end(ALICE, initiator=True), end(ALICE, initiator=False))


def test_a_long_handshake_message_is_refused_before_it_is_received() -> None:
    with pytest.raises(HandshakeFailed, match="65535 bytes"):
        end(ALICE, initiator=False).receive(b"\xff\xff")


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=200_000), max_size=5), st.integers(1, 100_000))
def test_what_is_sealed_opens_however_it_is_cut(messages: list[bytes], cut: int) -> None:
    a, b = sessions()
    wire = b"".join(a.seal(message) for message in messages)
    assert b"".join(b.open(wire[at : at + cut]) for at in range(0, len(wire), cut)) == b"".join(messages)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_flipped_bit_is_noticed(message: bytes, data: st.DataObject) -> None:
    a, b = sessions()
    wire = bytearray(a.seal(message))
    wire[data.draw(st.integers(2, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PacketDamaged):
        b.open(bytes(wire))


def test_replayed_reordered_and_reflected_packets_are_noticed() -> None:
    a, b = sessions()
    first, second = a.seal(b"one"), a.seal(b"two")
    with pytest.raises(PacketDamaged):
        sessions()[1].open(second)
    assert b.open(first) == b"one"
    with pytest.raises(PacketDamaged):
        b.open(first)
    with pytest.raises(PacketDamaged):
        a.open(first)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_a_handshake_fail_otherwise_than_by_saying_so(data: bytes, initiator: bool) -> None:
    handshake = end(ALICE, initiator=initiator)
    handshake.begin()
    try:
        handshake.receive(data)
    except HandshakeFailed:
        assert handshake.session is None
