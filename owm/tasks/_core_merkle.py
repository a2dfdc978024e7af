"""An append-only Merkle log as in RFC 6962, section 2: inclusion and consistency proofs, made and checked."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

__all__ = [
    "KEPT_LEVELS",
    "Frontier",
    "MerkleLog",
    "combined",
    "consistency_ranges",
    "inclusion_ranges",
    "leaf_hash",
    "subtrees",
    "verify_consistency",
    "verify_inclusion",
]

KEPT_LEVELS: Final = 8  #: the hashes of subtrees of 2**8, 2**16, ... entries are kept: proofs read few hundred hashes


def leaf_hash(leaf: bytes) -> bytes:
    """MTH of a single entry; the prefix keeps leaves and nodes apart."""
    return sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class MerkleLog:
    """Hashes of all complete subtrees, level by level: appending costs amortised O(1), a proof O(log² n)."""

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add an entry; returns its position."""
        self._levels[0].append(leaf_hash(leaf))
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(_node(*self._levels[level][-2:]))
            level += 1
        return len(self) - 1

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` entries (all by default); raises ValueError beyond the log."""
        size = len(self) if size is None else size
        if not 0 <= size <= len(self):
            raise ValueError(f"the log has {len(self)} entries, not {size}")
        return self._hash(0, size) if size else sha256(b"").digest()

    def inclusion(self, position: int, size: int | None = None) -> list[bytes]:
        """The audit path of an entry in the tree of ``size`` entries (RFC 6962, 2.1.1)."""
        size = len(self) if size is None else size
        if not 0 <= position < size <= len(self):
            raise ValueError("no such entry in a tree of that size")
        return [self._hash(*part) for part in inclusion_ranges(position, size)]

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """The proof that the tree of ``old`` entries is a prefix of that of ``size`` (RFC 6962, 2.1.2)."""
        size = len(self) if size is None else size
        if not 0 < old <= size <= len(self):
            raise ValueError("no such trees in this log")
        return [self._hash(*part) for part in consistency_ranges(old, size)]

    def _hash(self, start: int, end: int) -> bytes:
        width = end - start
        if width & (width - 1) == 0:  # every subtree that starts at a split point is aligned to its width
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(width)
        return _node(self._hash(start, middle), self._hash(middle, end))


class Frontier:
    """The roots of the complete subtrees that a log's entries make: all that appending and the root need."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # the largest first

    def append(self, value: bytes, level: int = 0) -> list[tuple[int, int, bytes]]:
        """Add the hash of an entry, or of a complete subtree of 2**level entries.

        Returns:
            Level, position and hash of the subtrees that this completed on the levels that are kept.

        Raises:
            ValueError: the log's size is no multiple of the subtree's.
        """
        position, rest = divmod(self.size, 1 << level)
        if rest:
            raise ValueError("a subtree can only be added where one begins")
        self.size += 1 << level
        completed = []
        while position & 1:
            value = _node(self._peaks.pop(), value)
            position, level = position >> 1, level + 1
            if level % KEPT_LEVELS == 0:
                completed.append((level, position, value))
        self._peaks.append(value)
        return completed

    def root(self) -> bytes:
        return combined(self._peaks) if self._peaks else sha256(b"").digest()


def combined(peaks: Sequence[bytes]) -> bytes:
    """The hash of a range of entries from those of its subtrees, as :func:`subtrees` names them."""
    value = peaks[-1]
    for peak in reversed(peaks[:-1]):
        value = _node(peak, value)
    return value


def subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """Level and position of the complete subtrees that a range of a proof consists of, the largest first."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def inclusion_ranges(position: int, size: int) -> list[tuple[int, int]]:
    """The ranges of entries whose hashes make the audit path of an entry (RFC 6962, 2.1.1)."""
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if position < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(old: int, size: int) -> list[tuple[int, int]]:
    """The ranges of entries whose hashes prove that one tree is a prefix of another (RFC 6962, 2.1.2)."""
    path, start, end, whole = [], 0, size, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    if not whole:
        path.append((start, end))
    return path[::-1]


def _split(width: int) -> int:
    """The largest power of two below ``width``."""
    return 1 << ((width - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, position: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` proves that ``leaf`` is entry ``position`` (RFC 9162, 2.1.3.2)."""
    if not 0 <= position < size:
        return False
    index, last, value = position, size - 1, leaf_hash(leaf)
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            value = _node(sibling, value)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            value = _node(value, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and value == root


def verify_consistency(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the smaller tree is a prefix of the larger (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= size:
        return False
    if old == size:
        return not path and old_root == root
    proof = list(path)
    if old & (old - 1) == 0:
        proof.insert(0, old_root)
    if not proof:
        return False
    index, last = old - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    first = second = proof[0]
    for value in proof[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            first, second = _node(value, first), _node(value, second)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            second = _node(second, value)
        index, last = index >> 1, last >> 1
    return last == 0 and first == old_root and second == root
