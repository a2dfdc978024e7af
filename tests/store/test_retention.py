"""What the store forgets, what it never forgets, and what it keeps of inputs and outputs."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.clock import ManualClock
from owm.store import SCHEMA_VERSION, Content, Retention, Store, TaskEntry, read_tasks, task_view
from owm.store._schema import _MIGRATIONS

DAY = 86400.0


def entry(number: int, *, created: float, finished: bool = True) -> TaskEntry:
    end = created + 1 if finished else None
    return TaskEntry(
        id=f"{number:06}", role="worker", type="inference", peer=b"p", state="done", created=created, finished=end
    )


def content(data: bytes, text: str = "") -> Content:
    return Content(hashlib.sha256(data).digest(), data, text)


async def test_finished_tasks_are_forgotten_in_time_and_running_ones_never() -> None:
    async with Store(None, retention=Retention(task_seconds=10 * DAY)).running() as store:
        for number in range(2500):
            await store.log_task(entry(number, created=number * 0.01 * DAY))
        await store.log_task(entry(9999, created=0.0, finished=False))
        removed = await store.prune(25 * DAY)
        left = await store.tasks(limit=10_000)
        assert removed == 1500 and len(left) == 1001
        assert min(task.created for task in left if task.finished) >= 15 * DAY
        assert left[-1].id == "009999"


async def test_only_so_many_tasks_are_kept() -> None:
    async with Store(None, retention=Retention(most_tasks=100)).running() as store:
        for number in range(250):
            await store.log_task(entry(number, created=float(number)))
        await store.prune(300.0)
        left = await store.tasks(limit=1000)
        assert len(left) == 100 and left[0].id == "000249"


async def test_contents_are_kept_only_where_asked_for() -> None:
    """Prompts are other people's: hashes and salts alone stand on the disk unless the operator says otherwise."""
    kept = content(b"a prompt that somebody sent")
    async with Store(None).running() as store:
        await store.log_task(entry(1, created=1.0), kept)
        assert await store.content(kept.hash) is None
    async with Store(None, retention=Retention(contents=True)).running() as store:
        await store.log_task(entry(1, created=1.0), kept)
        assert await store.content(kept.hash) == kept


async def test_contents_are_forgotten_in_time_and_at_once_where_the_setting_is_off_again(tmp_path: Path) -> None:
    on = Retention(contents=True, content_seconds=7 * DAY)
    old, new = content(b"old"), content(b"new")
    async with Store(tmp_path / "x.db", inline=True, retention=on).running() as store:
        await store.log_task(entry(1, created=1.0), old)
        await store.log_task(entry(2, created=6 * DAY), new)
        await store.prune(8 * DAY)
        assert await store.content(old.hash) is None and await store.content(new.hash) == new
    async with Store(tmp_path / "x.db", inline=True).running() as store:
        await store.prune(8 * DAY)
        assert await store.content(new.hash) is None


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_contents_never_take_more_than_their_room_and_the_newest_stay(sizes: list[int]) -> None:
    import trio

    async def main() -> None:
        most = 8000
        async with Store(None, retention=Retention(contents=True, content_bytes=most)).running() as store:
            last = None
            for number, size in enumerate(sizes):
                one = content(number.to_bytes(8, "big") + bytes(size), "text")
                await store.log_task(entry(number, created=float(number)), one)
                if len(one.data) + 4 <= most // 4:
                    last = one
                sql = "SELECT coalesce(sum(length(data) + length(text)), 0) FROM contents"
                assert (await store._query(sql, ()))[0][0] <= most
                assert last is None or await store.content(last.hash) == last

    trio.run(main)


async def test_pruning_goes_on_by_itself(autojump_clock: object) -> None:
    import trio

    clock = ManualClock(start=1000 * DAY)
    async with Store(None).running() as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.keep_pruned, clock)
        await store.log_task(entry(1, created=1.0))
        await trio.sleep(120)
        assert await store.tasks() == []
        await store.log_task(entry(2, created=2.0))
        await trio.sleep(3700)
        assert await store.tasks() == []
        nursery.cancel_scope.cancel()


async def test_a_file_of_the_first_version_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in _MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute("PRAGMA user_version = 1")
    connection.execute(
        "INSERT INTO tasks VALUES ('a', 'worker', 'inference', x'01', 'done', x'02', x'03', 1.0, 1.5, 2.0, 3, 4, "
        "'due', '', NULL, NULL)"
    )
    connection.execute("INSERT INTO dispatches VALUES (0, x'04')")
    connection.close()
    (before,) = read_tasks(path, 10)
    assert (before.id, before.payment, before.salt) == ("a", "due", b"")
    async with Store(path).running() as store:
        assert await store.tasks() == [before]
        assert await store.dispatches() == [b"\x04"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_a_view_is_plain_json_with_every_field_but_the_signatures() -> None:
    view = task_view(msgspec.structs.replace(entry(1, created=1.0), salt=b"\x01\x02", receipt=b"r"))
    assert view["salt"] == "0102" and view["payment"] == "none"
    assert set(view) == set(TaskEntry.__struct_fields__) - {"receipt", "countersignature"}
    assert msgspec.json.decode(msgspec.json.encode(view)) == view
