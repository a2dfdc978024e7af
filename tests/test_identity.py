"""Keys on disk and in use."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey

from owm.errors import IdentityError
from owm.identity import Identity, PeerId, box_key_of, verify


def test_the_first_run_makes_a_seed_that_only_its_owner_can_read(tmp_path: Path) -> None:
    """SRS-NODE-02."""
    path = tmp_path / "new" / "identity.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size == 32
    assert Identity.load_or_create(path).peer_id == Identity.load(path).peer_id == made.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_seed_that_others_can_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"mode {mode:04o}.*chmod 600"):
        Identity.load_or_create(path)


def test_a_missing_or_damaged_seed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with pytest.raises(IdentityError, match="owm init"):
        Identity.load(path)
    path.touch(0o600)
    path.write_bytes(b"short")
    with pytest.raises(IdentityError, match="5 bytes instead of 32"):
        Identity.load(path)


def test_the_secret_never_shows_in_a_repr() -> None:
    identity = Identity(b"s" * 32)
    assert "ssss" not in repr(identity) and identity.seed.hex() not in repr(identity) + str(identity.peer_id)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_signatures_and_ids(seed: bytes, message: bytes) -> None:
    identity = Identity(seed)
    signature = identity.sign(message)
    assert verify(identity.public_key, message, signature)
    assert not verify(identity.public_key, message + b"x", signature)
    assert not verify(identity.public_key, message, signature[:-1])
    assert PeerId.parse(str(identity.peer_id)) == identity.peer_id
    assert str(identity.peer_id).startswith("12D3Koo")
    assert identity.peer_id.public_key == identity.public_key


def test_derived_keys_are_separate_and_boxes_open_for_the_peer_id() -> None:
    identity = Identity(b"s" * 32)
    assert len({identity.derive("onion"), identity.derive("other"), identity.seed}) == 3
    sender = PrivateKey(b"e" * 32)
    sealed = Box(sender, box_key_of(identity.peer_id)).encrypt(b"hello")
    assert Box(identity.box_key, sender.public_key).decrypt(sealed) == b"hello"


@given(st.binary(max_size=60))
def test_not_every_byte_string_is_a_peer_id(raw: bytes) -> None:
    try:
        peer = PeerId(raw)
    except ValueError:
        return
    assert bytes(peer) == raw and len(raw) <= 44


@given(st.one_of(st.binary(min_size=32, max_size=32), st.binary(min_size=1, max_size=42)))
def test_a_short_name_is_the_end_of_the_long_one(raw: bytes) -> None:
    ids = [PeerId(bytes([0, len(raw)]) + raw)]
    if len(raw) == 32:
        ids += [PeerId(b"\x12\x20" + raw), PeerId.of_key(raw)]
    for peer in ids:
        assert peer.short == str(peer)[-8:]
