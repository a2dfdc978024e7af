"""The dispatch log gives the head and the proofs of a whole tree in memory, from the store and a few hashes."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.identity import Identity
from owm.store import Retention, Store, TaskEntry
from owm.tasks import MerkleLog, verify_consistency, verify_inclusion
from owm.tasks._core_merkle import Frontier, combined, leaf_hash, subtrees
from owm.tasks._dispatch_log import DispatchLog

WORKER = Identity(b"w" * 32).peer_id
DAY = 86400.0


async def fill(log: DispatchLog, start: int, end: int, now: float = 0.0) -> None:
    for number in range(start, end):
        await log.append(number.to_bytes(16, "big"), WORKER, "inference", 1, now or float(number))


@given(st.integers(0, 700))
def test_a_frontier_has_the_root_of_the_whole_tree(size: int) -> None:
    frontier, leaves = Frontier(), [b"%d" % number for number in range(size)]
    kept = [node for leaf in leaves for node in frontier.append(leaf_hash(leaf))]
    assert frontier.root() == MerkleLog(leaves).root()
    assert [(level, position) for level, position, _ in kept] == [(8, number) for number in range(size // 256)]
    again = Frontier()
    for _, _, value in kept:
        again.append(value, 8)
    for leaf in leaves[again.size :]:
        again.append(leaf_hash(leaf))
    assert (again.size, again.root()) == (size, frontier.root())


def test_a_subtree_is_added_only_where_one_begins() -> None:
    frontier = Frontier()
    frontier.append(leaf_hash(b"a"))
    with pytest.raises(ValueError, match="begins"):
        frontier.append(b"n" * 32, 8)


@given(st.integers(0, 1000), st.integers(0, 10))
def test_a_range_is_made_of_whole_subtrees(start: int, scale: int) -> None:
    begin = start << scale
    parts = subtrees(begin, begin + (1 << scale) + ((1 << scale) >> 1))
    assert sum(1 << level for level, _ in parts) == (1 << scale) + ((1 << scale) >> 1)
    assert parts[0] == (scale, start)
    assert combined([b"x"]) == b"x"


async def test_proofs_from_the_store_are_those_of_a_tree_in_memory() -> None:
    async with Store(None).running() as store:
        log = DispatchLog(store)
        await log.load()
        await fill(log, 0, 1300)
        leaves = await store.dispatches()
        tree, random = MerkleLog(leaves), Random(1)
        assert log.head() == (1300, tree.root())
        for _ in range(150):
            size = random.randint(1, 1300)
            position, old = random.randrange(size), random.randint(1, size)
            path = await log.inclusion(position, size)
            assert path == tree.inclusion(position, size)
            assert verify_inclusion(leaves[position], position, size, path, tree.root(size))
            proof = await log.consistency(old, size)
            assert proof == tree.consistency(old, size)
            assert verify_consistency(old, tree.root(old), size, tree.root(size), proof)
        for wrong in (log.inclusion(5, 5), log.inclusion(0, 1301), log.consistency(0, 5), log.consistency(6, 5)):
            with pytest.raises(ValueError, match="no such"):
                await wrong


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1200), st.sets(st.integers(0, 4)))
def test_a_log_that_is_loaded_again_goes_on_whatever_hashes_a_crash_left_out(size: int, lost: set[int]) -> None:
    async def main() -> None:
        async with Store(None).running() as store:
            log = DispatchLog(store)
            await log.load()
            await fill(log, 0, size)
            await store._db.run(
                lambda db: db.executemany("DELETE FROM dispatch_nodes WHERE position = ?", [(n,) for n in lost])
            )
            again = DispatchLog(store)
            await again.load()
            assert again.head() == log.head()
            await fill(again, size, size + 3)
            tree = MerkleLog(await store.dispatches())
            assert again.head() == (size + 3, tree.root())
            assert await again.inclusion(size, size + 3) == tree.inclusion(size, size + 3)

    trio.run(main)


async def test_many_at_once_leave_no_hole_and_no_two_at_one_place() -> None:
    async with Store(None).running() as store:
        log, places = DispatchLog(store), list[int]()

        async def add(number: int) -> None:
            places.append(await log.append(number.to_bytes(16, "big"), WORKER, "inference", 1, 0.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.load)
            for number in range(600):
                nursery.start_soon(add, number)
        assert sorted(places) == list(range(600))
        assert log.head() == (600, MerkleLog(await store.dispatches()).root())


async def test_old_entries_are_forgotten_by_the_tile_and_the_head_stays() -> None:
    async with Store(None, retention=Retention(task_seconds=90 * DAY)).running() as store:
        log = DispatchLog(store)
        await log.load()
        await fill(log, 0, 1000, now=1.0)
        await fill(log, 1000, 1100, now=50 * DAY)
        tree = MerkleLog(await store.dispatches())
        assert await store.prune(80 * DAY) == 0
        assert await store.prune(100 * DAY) == 768, "whole tiles only"
        assert len(await store.dispatches()) == 1100 - 768
        again = DispatchLog(store)
        await again.load()
        assert again.head() == (1100, tree.root())
        assert await again.consistency(800, 1100) == tree.consistency(800, 1100)
        assert await again.consistency(512, 1100) == tree.consistency(512, 1100), "a head where a tile ended"
        assert await again.inclusion(900, 1100) == tree.inclusion(900, 1100)
        with pytest.raises(ValueError, match="older than what is kept"):
            await again.inclusion(5, 1100)
        await store.prune(1000 * DAY)
        last = DispatchLog(store)
        await last.load()
        assert last.head() == (1100, tree.root()), "the newest tile stays, by which the size is known"


async def test_memory_does_not_grow_with_the_log() -> None:
    async with Store(None).running() as store:
        log = DispatchLog(store)
        await log.load()
        await fill(log, 0, 600)
        assert log._written == {}
        assert len(log._frontier._peaks) <= 10
        assert sys.getsizeof(log._frontier._peaks) < 400


async def test_a_dispatch_and_its_line_in_the_task_log_are_written_together(tmp_path: Path) -> None:
    entry = TaskEntry(id="a", role="requester", type="inference", peer=b"p", state="offered")
    async with Store(tmp_path / "x.db", inline=True).running() as store:
        log = DispatchLog(store)
        await log.load()
        await log.append(b"t" * 16, WORKER, "inference", 1, 1.0, entry)
        assert await store.tasks() == [entry]
        assert log.size == 1
