"""The store: what it gives back, what it refuses, and what survives."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
import trio

from owm.store import CHUNK_BYTES, SCHEMA_VERSION, BlobStore, Store, TaskEntry
from owm.store.errors import BlobDamaged, BlobMissing, SchemaTooNew, StoreClosed, StoreError


@pytest.fixture(params=[True, False], ids=["inline", "thread"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "peer.db", inline=request.param)


ENTRY = TaskEntry(id="a", role="worker", type="inference", peer=b"p", state="accepted", created=1.0, input_hash=b"i")


async def test_the_task_log_keeps_the_latest_of_each_task(store: Store, tmp_path: Path) -> None:
    """SRS-NODE-06."""
    (tmp_path / "deep").mkdir()
    done = msgspec.structs.replace(ENTRY, state="done", finished=3.0, receipt=b"r", payment="due", output_hash=b"o")
    async with store.running():
        await store.log_task(ENTRY)
        assert await store.task("a", "worker") == ENTRY
        await store.log_task(done)
        await store.log_task(msgspec.structs.replace(ENTRY, id="b", created=2.0))
        assert [entry.id for entry in await store.tasks()] == ["b", "a"]
        assert await store.tasks(state="done") == [done]
        assert await store.task("a", "requester") is None
    async with store.running():
        assert await store.abandon_unfinished(9.0) == 1
        entry = await store.task("b", "worker")
        assert entry is not None and (entry.state, entry.finished) == ("failed", 9.0)
        assert await store.task("a", "worker") == done


async def test_sequences_only_grow_even_when_the_clock_is_set_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    async with store.running():
        first = [await store.next_sequence("manifest", now) for now in (1000.0, 1000.0, 5.0, 2000.0)]
        assert first == [1_000_000, 1_000_001, 1_000_002, 2_000_000]
        assert await store.next_sequence("receipt", 1.0) == 1000
    again = Store(tmp_path / "deep" / "peer.db")
    async with again.running():
        assert await again.next_sequence("manifest", 0.0) > 2_000_000


async def test_many_at_once_never_share_a_sequence(store: Store, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    given: list[int] = []

    async def take() -> None:
        given.append(await store.next_sequence("receipt", 1.0))

    async with store.running(), trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(take)
    assert len(set(given)) == 200


async def test_state_and_dispatches(store: Store, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    async with store.running():
        await store.put("peers", b"k", b"v")
        await store.put("peers", b"k", b"w")
        await store.put("other", b"k", b"x")
        assert await store.get("peers", b"k") == b"w" and await store.items("peers") == [(b"k", b"w")]
        await store.replace("peers", {b"b": b"2", b"a": b"1"})
        assert await store.items("peers") == [(b"a", b"1"), (b"b", b"2")]
        await store.put("peers", b"a", None)
        assert await store.get("peers", b"a") is None
        await store.append_dispatch(0, b"leaf")
        with pytest.raises(StoreError):
            await store.append_dispatch(0, b"another past")
        assert await store.dispatches() == [b"leaf"]


@pytest.mark.attack("Z3")
async def test_a_file_from_a_newer_version_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "peer.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(SchemaTooNew, match="upgrade OWM"):
        async with store.running():
            pass
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    async with store.running():
        pass
    with pytest.raises(StoreClosed):
        await store.log_task(ENTRY)


async def test_blobs_are_named_by_their_content_and_checked(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    content = bytes(range(256)) * 4096 * 3
    source = tmp_path / "source"
    source.write_bytes(content)
    name = await blobs.add(source)
    assert name == await blobs.add(content, expected=name)
    chunks = await blobs.open(name)
    assert b"".join(chunks) == content and {len(chunk) for chunk in chunks} == {CHUNK_BYTES}
    with pytest.raises(BlobDamaged):
        await blobs.add(b"other", expected=name)
    assert [path for path in (tmp_path / "blobs").iterdir() if path.name.startswith(".")] == []
    with pytest.raises(BlobMissing):
        await blobs.open("0" * 64)
    with pytest.raises(ValueError, match="not a SHA-256"):
        await blobs.has("../../etc/passwd")
    blobs.path(name).write_bytes(content[:-1] + b"!")
    with pytest.raises(BlobDamaged):
        await blobs.open(name)
    assert not await blobs.has(name)
