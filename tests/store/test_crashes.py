"""A crash at any moment: what was acknowledged is there, and nothing is there by half (SRS-NODE-06)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from owm.store import Store
from tests.store._writer import LANES, RECEIPT, RETENTION, ROUNDS, write

Told = list[list[Any]]
_HEADER, _FRAME = 32, 24 + 4096  # of SQLite's write-ahead log


async def check(path: Path, told: Told) -> None:
    """The file holds all that was told of, and each thing with all that was written along with it."""
    async with Store(path, inline=True, retention=RETENTION).running() as store:
        found = {(entry.id, entry.role): entry for entry in await store.tasks(limit=1000)}
        dispatched = await store.dispatches()
        for kind, what in told:
            if kind == "worker":
                assert found[what[0], "worker"].state in (what[1], "done")
            elif kind == "dispatch":
                assert dispatched[what[1]] == what[0].encode()
            elif kind == "set":
                assert int((await store.items(f"set {what[0]}"))[0][1]) >= what[1]
        for entry in found.values():
            kept = await store.content(entry.input_hash)
            assert kept is not None and hashlib.sha256(kept.data).digest() == entry.input_hash
            if entry.state == "done":
                assert entry.receipt == RECEIPT and await store.content(entry.output_hash) is not None
        assert sorted(dispatched) == sorted(name.encode() for name, role in found if role == "requester")
        nodes = await store.dispatch_nodes(8, 0, 100)
        assert len(nodes) % 2 == 0
        for lane in range(LANES):
            items = await store.items(f"set {lane}")
            assert len(items) in (0, 3) and len({value for _, value in items}) <= 1
            given = [what[1] for kind, what in told if kind == "sequence" and what[0] == lane]
            assert await store.next_sequence(f"type {lane}", 0.0) > max(given, default=0)
        assert await store._query("PRAGMA integrity_check", ()) == [("ok",)]


@pytest.mark.slow
@pytest.mark.attack("Z1")
def test_a_process_that_ends_before_any_statement_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Before each SQL statement in turn, the schema's and the commits included, some process ends at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store._writer", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    runs = [json.loads(text) for text in done.stdout.splitlines()]
    assert runs[-1]["through"] and len(runs) > 50
    assert len(runs[-1]["told"]) == LANES * ROUNDS * 5
    lengths = {len(run["told"]) for run in runs}
    assert {0, LANES * ROUNDS * 5} <= lengths and len(lengths) > 5, "ends fell before, between and after the commits"

    async def main() -> None:
        for run in runs:
            await check(tmp_path / f"{run['last']}.db", run["told"])

    trio.run(main)


@pytest.mark.slow
@pytest.mark.attack("Z1")
def test_a_log_that_is_cut_anywhere_holds_what_was_acknowledged_before_the_cut(tmp_path: Path) -> None:
    """What a power cut leaves: the write-ahead log up to any byte. Writes up to there are whole, later ones absent."""
    path, wal = tmp_path / "peer.db", tmp_path / "peer.db-wal"
    told: list[tuple[int, list[Any]]] = []

    async def main() -> None:
        async with Store(path, inline=True, retention=RETENTION).running() as store:
            for lane in range(LANES):
                await write(store, lane, lambda kind, what: told.append((wal.stat().st_size, [kind, what])))
            shutil.copy(path, tmp_path / "whole.db")
            shutil.copy(wal, tmp_path / "whole.wal")
        log = (tmp_path / "whole.wal").read_bytes()
        assert told[-1][0] == len(log), "no checkpoint came between"
        boundaries = range(_HEADER, len(log) + 1, _FRAME)
        for cut in sorted({edge + off for edge in boundaries for off in (-1, 0, 24, 2000)} - {*range(_HEADER)}):
            target = tmp_path / "cut.db"
            shutil.copy(tmp_path / "whole.db", target)
            (tmp_path / "cut.db-wal").write_bytes(log[:cut])
            (tmp_path / "cut.db-shm").unlink(missing_ok=True)
            await check(target, [what for size, what in told if size <= cut])

    trio.run(main)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
