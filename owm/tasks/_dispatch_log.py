"""What we dispatched, in an append-only Merkle log (SRS-SCHED-06) whose head our manifest carries."""

from __future__ import annotations

import msgspec
import trio

from owm.identity import PeerId
from owm.store import Store
from owm.tasks._core_merkle import MerkleLog

__all__ = ["DispatchLog", "DispatchRecord"]


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
        self._tree = MerkleLog()
        self._next = 0
        self._written: dict[int, bytes] = {}
        self._loaded = trio.Event()

    async def load(self) -> None:
        """Read what earlier runs wrote; nothing is appended before."""
        leaves = await self._store.dispatches()
        self._tree = MerkleLog(leaves)
        self._next = len(leaves)
        self._loaded.set()

    async def append(self, task: bytes, worker: PeerId, task_type: str, attempt: int, now: float) -> int:
        """Write one dispatch; returns its position. A cancelled call has still written it."""
        await self._loaded.wait()
        leaf = msgspec.msgpack.encode(DispatchRecord(task, bytes(worker), task_type, attempt, int(now * 1000)))
        position = self._next
        self._next += 1
        # Shielded: a position that is given out must be filled, or the log would have a hole.
        with trio.CancelScope(shield=True):
            await self._store.append_dispatch(position, leaf)
        self._written[position] = leaf
        while len(self._tree) in self._written:
            self._tree.append(self._written.pop(len(self._tree)))
        return position

    @property
    def size(self) -> int:
        return len(self._tree)

    def head(self) -> tuple[int, bytes]:
        """Size and root."""
        return len(self._tree), self._tree.root()

    def inclusion(self, position: int, size: int) -> list[bytes]:
        """Proof that an entry is in the tree of that size; raises ValueError."""
        return self._tree.inclusion(position, size)

    def consistency(self, old: int, size: int) -> list[bytes]:
        """Proof that the log only grew; raises ValueError."""
        return self._tree.consistency(old, size)
