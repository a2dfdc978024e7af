"""Signed peer records: py-libp2p, and so go and js, read ours and we read theirs; forgeries are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.identity import Identity, PeerId
from owm.net._core_multiaddr import encode_multiaddr
from owm.net._core_peer_record import MAX_PEER_RECORD, PeerRecord, open_peer_record, sign_peer_record

WHO, OTHER = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
ADDRESSES = ("/ip4/203.0.113.7/tcp/9000", "/ip6/2001:db8::1/tcp/9000", "/dns4/example.org/tcp/443")
SEQUENCE = 1_700_000_000_000_000_000


def test_a_record_comes_back_as_it_was_signed() -> None:
    assert open_peer_record(sign_peer_record(WHO, SEQUENCE, ADDRESSES)) == PeerRecord(WHO.peer_id, SEQUENCE, ADDRESSES)


def test_the_library_reads_ours_and_we_read_the_librarys() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.envelope import consume_envelope, seal_record
    from libp2p.peer.id import ID
    from libp2p.peer.peer_record import PeerRecord as LibraryRecord
    from multiaddr import Multiaddr

    _, theirs = consume_envelope(sign_peer_record(WHO, SEQUENCE, ADDRESSES), "libp2p-peer-record")
    assert (theirs.peer_id.to_bytes(), theirs.seq) == (bytes(WHO.peer_id), SEQUENCE)
    assert [str(address) for address in theirs.addrs] == list(ADDRESSES)

    keys = create_new_key_pair(WHO.seed)
    addresses = [Multiaddr(ADDRESSES[0]), Multiaddr(f"{ADDRESSES[1]}/p2p/{WHO.peer_id}"),
                 Multiaddr("/ip4/203.0.113.7/udp/9000/quic-v1")]  # fmt: skip
    envelope = seal_record(LibraryRecord(ID(bytes(WHO.peer_id)), addresses, 7), keys.private_key)
    assert open_peer_record(envelope.marshal_envelope()) == PeerRecord(WHO.peer_id, 7, ADDRESSES[:2])


@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_change_anywhere_is_noticed(position: int, bit: int) -> None:
    changed = bytearray(sign_peer_record(WHO, SEQUENCE, ADDRESSES))
    changed[position % len(changed)] ^= 1 << bit
    with pytest.raises(ValueError):
        open_peer_record(bytes(changed))


@given(st.binary(max_size=300))
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        open_peer_record(data)
    with pytest.raises(ValueError):
        open_peer_record(sign_peer_record(WHO, 1, ADDRESSES)[: len(data)])


def test_nobody_speaks_for_somebody_else() -> None:
    class Liar(Identity):
        @property
        def peer_id(self) -> PeerId:  # type: ignore[override]
            return WHO.peer_id

    with pytest.raises(ValueError, match="somebody else"):
        open_peer_record(sign_peer_record(Liar(OTHER.seed), SEQUENCE, ADDRESSES))


def test_what_is_too_large_is_not_even_read_and_addresses_are_few() -> None:
    with pytest.raises(ValueError, match="too large"):
        open_peer_record(bytes(MAX_PEER_RECORD + 1))
    many = [f"/ip4/203.0.113.7/tcp/{1 + port}" for port in range(200)]
    assert open_peer_record(sign_peer_record(WHO, 1, many)).addresses == tuple(many[:16])
    assert open_peer_record(sign_peer_record(WHO, 1, ["nonsense", ADDRESSES[0]])).addresses == ADDRESSES[:1]


def test_an_address_under_another_peers_name_is_left_out_and_a_relays_stays() -> None:
    relayed = f"/ip4/203.0.113.9/tcp/1/p2p/{OTHER.peer_id}/p2p-circuit"
    named = f"{ADDRESSES[0]}/p2p/{OTHER.peer_id}"
    assert encode_multiaddr(named)
    assert open_peer_record(sign_peer_record(WHO, 1, [named, relayed])).addresses == (relayed,)
