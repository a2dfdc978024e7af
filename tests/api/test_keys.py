"""API keys: made, listed, revoked, found; what lies on the disk, and who may read it."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.api import KeyStore
from owm.clock import ManualClock
from owm.errors import TemporaryError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.sqlite"


@pytest.fixture
def store(path: Path) -> KeyStore:
    return KeyStore(path, ManualClock())


def test_a_key_is_found_by_its_secret_until_it_is_revoked(store: KeyStore) -> None:
    made = store.add("mine", 7)
    assert made.secret.startswith("owm_") and len(made.secret) == 4 + 64
    assert store.find(made.secret) == made.key
    assert (made.key.name, made.key.per_day, made.key.created, made.key.revoked) == ("mine", 7, 1_800_000_000.0, None)
    revoked = store.revoke(made.key.id)
    assert revoked.revoked == 1_800_000_000.0
    assert store.find(made.secret) is None
    assert store.list() == (revoked,)


def test_revoking_twice_keeps_the_first_date(path: Path) -> None:
    clock = ManualClock()
    store = KeyStore(path, clock)
    key = store.add("mine").key
    first = store.revoke(key.id)
    clock.advance(10)
    assert store.revoke(key.id) == first


def test_a_key_made_or_revoked_by_another_process_counts_here_at_once(path: Path, store: KeyStore) -> None:
    other = KeyStore(path)
    made = other.add("theirs")
    assert store.find(made.secret) == made.key
    other.revoke(made.key.id)
    assert store.find(made.secret) is None


def test_no_secret_lies_on_the_disk_only_its_hash(path: Path, store: KeyStore) -> None:
    made = store.add("mine")
    secret = made.secret.encode()
    raw = bytes.fromhex(made.secret.removeprefix("owm_"))
    files = list(path.parent.iterdir())
    assert path in files
    content = b"".join(file.read_bytes() for file in files)
    assert hashlib.sha256(secret).digest() in content
    for trace in (secret, secret[4:], secret[4:20], raw, raw[:8]):
        assert trace not in content
    assert made.secret not in repr(store.list())


def test_only_the_owner_may_read_the_file_and_its_journal(path: Path, store: KeyStore) -> None:
    store.add("mine")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert len(modes) >= 2  # the journal too
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_may_read_is_closed_to_them(path: Path) -> None:
    path.parent.mkdir()
    path.touch(mode=0o644)
    path.chmod(0o644)
    KeyStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_and_ids_are_never_repeated(store: KeyStore) -> None:
    made = [store.add("same name") for _ in range(50)]
    assert len({key.secret for key in made}) == len({key.key.id for key in made}) == 50
    assert [key.id for key in store.list()] == sorted(key.key.id for key in made)  # one date, so by id


@pytest.mark.parametrize(("name", "per_day"), [("", 1), ("x" * 65, 1), ("x", -1), ("x", 1_000_001)])
def test_a_key_that_makes_no_sense_is_not_made(store: KeyStore, name: str, per_day: int) -> None:
    with pytest.raises(UsageError):
        store.add(name, per_day)
    assert store.list() == ()


def test_an_unknown_key_cannot_be_revoked(store: KeyStore) -> None:
    with pytest.raises(UsageError, match="owm keys list"):
        store.revoke("key_nonesuch")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyStore, str]:
    store = KeyStore(tmp_path_factory.mktemp("keys") / "keys.sqlite")
    return store, store.add("mine").secret


@given(data=st.data())
def test_nothing_but_the_secret_finds_a_key(shared: tuple[KeyStore, str], data: st.DataObject) -> None:
    store, secret = shared
    near = st.integers(0, len(secret) - 1).flatmap(
        lambda at: st.sampled_from("0123456789abcdefgX' %").map(lambda char: secret[:at] + char + secret[at + 1 :])
    )
    fixed = st.sampled_from(
        [secret.upper(), secret + "0", secret[:-1], secret[4:], " " + secret, "owm_", "owm_%", "owm_' OR 1=1"]
    )
    wrong = data.draw(st.one_of(near, fixed, st.text(max_size=300).map(lambda text: "owm_" + text)))
    assert (store.find(wrong) is not None) == (wrong == secret)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_bytes(b"this is no database, but longer than a header" * 100)
    with pytest.raises(TemporaryError, match=r"keys\.sqlite"):
        KeyStore(path)


def test_a_file_locked_for_long_is_a_passing_error_and_no_crash(path: Path, store: KeyStore) -> None:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store._database.execute("PRAGMA busy_timeout = 20")
    with pytest.raises(TemporaryError):
        store.add("mine")
    holder.execute("ROLLBACK")
    assert store.add("mine").key.name == "mine"
    holder.close()
