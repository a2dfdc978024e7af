"""What we dispatched, in an append-only Merkle log (SRS-SCHED-06) whose head our manifest carries.

In memory are only the roots of its complete subtrees; proofs are made from the store, when somebody asks for one.
What is older than the store's retention is forgotten by the tile of 256 entries: the tile's hash stays, and with it
the head.
"""

from __future__ import annotations

from typing import Final

import msgspec
import trio

from owm.identity import PeerId
from owm.store import Content, Store, TaskEntry
from owm.tasks._core_merkle import (
    KEPT_LEVELS,
    Frontier,
    combined,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    subtrees,
)

__all__ = ["DispatchLog", "DispatchRecord"]

_READ: Final = 4096  #: rows taken from the store at once


class DispatchRecord(msgspec.Struct, frozen=True, array_like=True):
    """One leaf. It names no input and no output, only that a task went to a worker."""

    task: bytes
    worker: bytes
    task_type: str
    attempt: int
    time: int  #: unix milliseconds


class DispatchLog:
    """The log; an entry counts, and is part of the head, once it is on the disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._frontier = Frontier()
        self._written: dict[int, bytes] = {}  # entries whose predecessors we have not seen written yet
        self._loaded = trio.Event()

    async def load(self) -> None:
        """Rebuild the head from what earlier runs wrote; nothing is appended before."""
        frontier, position = self._frontier, 0
        while nodes := await self._store.dispatch_nodes(KEPT_LEVELS, position, position + _READ):
            for number, value in nodes:
                if number != position:  # a crash came before its hash was written, and what follows is made again
                    break
                await self._keep(frontier.append(value, KEPT_LEVELS))
                position += 1
            else:
                continue
            break
        while leaves := await self._store.dispatches(frontier.size, frontier.size + _READ):
            for leaf in leaves:
                await self._keep(frontier.append(leaf_hash(leaf)))
        self._loaded.set()

    async def append(
        self,
        task: bytes,
        worker: PeerId,
        task_type: str,
        attempt: int,
        now: float,
        entry: TaskEntry | None = None,
        *contents: Content,
    ) -> int:
        """Write one dispatch, and the task log's line of it, at once; returns its position.

        A cancelled call has still written it.
        """
        await self._loaded.wait()
        leaf = msgspec.msgpack.encode(DispatchRecord(task, bytes(worker), task_type, attempt, int(now * 1000)))
        with trio.CancelScope(shield=True):  # what is written is also part of the head
            position = await self._store.append_dispatch(None, leaf, now, entry, *contents)
            self._written[position] = leaf_hash(leaf)
            while self._frontier.size in self._written:
                await self._keep(self._frontier.append(self._written.pop(self._frontier.size)))
        return position

    async def _keep(self, nodes: list[tuple[int, int, bytes]]) -> None:
        if nodes:
            await self._store.add_dispatch_nodes(nodes)

    @property
    def size(self) -> int:
        return self._frontier.size

    def head(self) -> tuple[int, bytes]:
        """Size and root."""
        return self._frontier.size, self._frontier.root()

    async def inclusion(self, position: int, size: int) -> list[bytes]:
        """Proof that an entry is in the tree of that size; raises ValueError, also for what was forgotten."""
        if not 0 <= position < size <= self.size:
            raise ValueError("no such entry in a tree of that size")
        return [await self._range(*part) for part in inclusion_ranges(position, size)]

    async def consistency(self, old: int, size: int) -> list[bytes]:
        """Proof that the log only grew; raises ValueError, also for a tree that was forgotten in part."""
        if not 0 < old <= size <= self.size:
            raise ValueError("no such trees in this log")
        return [await self._range(*part) for part in consistency_ranges(old, size)]

    async def _range(self, start: int, end: int) -> bytes:
        return combined([await self._subtree(*part) for part in subtrees(start, end)])

    async def _subtree(self, level: int, position: int) -> bytes:
        """From the hashes that are kept on the level at or below it, of which there are 128 at most."""
        base = level - level % KEPT_LEVELS
        first, last = position << (level - base), (position + 1) << (level - base)
        if base:
            hashes = [value for _, value in await self._store.dispatch_nodes(base, first, last)]
        else:
            hashes = [leaf_hash(leaf) for leaf in await self._store.dispatches(first, last)]
        if len(hashes) != last - first:
            raise ValueError("these entries are older than what is kept")
        tree = Frontier()
        for value in hashes:
            tree.append(value)
        return tree.root()
