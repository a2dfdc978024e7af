"""Set reconciliation for sets of 32-byte ids: compare digests of prefixes, descend where they differ.

A summary is a tree over the ids' hex digits, in the shape that the set alone determines: a prefix with at most
``LEAF`` ids is a leaf, whose digest is the SHA-256 of its sorted ids; any other is the SHA-256 of its 16 children's.
SHA-256 and not a sum or exclusive-or, which who chooses ids could steer (arXiv 2212.13567 discusses the choice).
One side asks, the other only answers: :class:`Reconciliation` keeps all state with who asks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from owm.net.errors import ProtocolViolation

__all__ = ["ID_BYTES", "LEAF", "Node", "Reconciliation", "Summary"]

ID_BYTES: Final = 32
LEAF: Final = 32
_DIGITS: Final = "0123456789abcdef"

#: A prefix's answer: its ids when it is a leaf, otherwise None and the digests of its 16 children.
Node = tuple[tuple[bytes, ...] | None, tuple[bytes, ...]]


class Summary:
    """A set of ids with the digests of its prefixes, kept until an insertion changes them."""

    __slots__ = ("_digests", "_ids", "_members")

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._members = set(ids)
        if any(len(id_) != ID_BYTES for id_ in self._members):
            raise ValueError(f"ids have {ID_BYTES} bytes")
        self._ids = sorted(self._members)
        self._digests: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._members

    def add(self, id_: bytes) -> bool:
        """Insert an id; False when it is there already. Raises ValueError for another length."""
        if len(id_) != ID_BYTES:
            raise ValueError(f"ids have {ID_BYTES} bytes")
        if id_ in self._members:
            return False
        self._members.add(id_)
        insort(self._ids, id_)
        text = id_.hex()
        for length in range(len(text) + 1):
            self._digests.pop(text[:length], None)
        return True

    def grown(self, ids: Iterable[bytes]) -> Summary:
        """A summary with those ids too; this one stays as it is. Few of them cost little: other digests are kept."""
        out = Summary()
        out._members, out._ids, out._digests = set(self._members), list(self._ids), dict(self._digests)
        for id_ in ids:
            out.add(id_)
        return out

    def digest(self, prefix: str) -> bytes:
        """The digest of the ids that begin with the hex digits ``prefix``."""
        found = self._digests.get(prefix)
        if found is None:
            low, high = self._range(prefix)
            if high - low <= LEAF:
                found = sha256(b"".join(self._ids[low:high])).digest()
            else:
                found = sha256(b"".join([self.digest(prefix + digit) for digit in _DIGITS])).digest()
            self._digests[prefix] = found
        return found

    def node(self, prefix: str) -> Node:
        """What the other side is told of a prefix."""
        low, high = self._range(prefix)
        if high - low <= LEAF:
            return tuple(self._ids[low:high]), ()
        return None, tuple(self.digest(prefix + digit) for digit in _DIGITS)

    def ids(self, prefix: str = "") -> list[bytes]:
        low, high = self._range(prefix)
        return self._ids[low:high]

    def _range(self, prefix: str) -> tuple[int, int]:
        low = bytes.fromhex(prefix.ljust(2 * ID_BYTES, "0"))
        high = bytes.fromhex(prefix.ljust(2 * ID_BYTES, "f"))
        start = bisect_left(self._ids, low)
        end = bisect_left(self._ids, high, start)
        return start, end + (end < len(self._ids) and self._ids[end] == high)


class Reconciliation:
    """One comparison with a remote set, driven by who asks.

    Ask the other side for the nodes of :meth:`questions` until there are none; then ``missing`` is what it has and we
    lack, ``surplus`` what we have and it lacks.

    Args:
        ours: must not change meanwhile.
        limit: ids that may turn out missing; what is beyond waits for the next time. It also bounds the questions.
    """

    def __init__(self, ours: Summary, limit: int = 100_000) -> None:
        self._ours = ours
        self._limit = limit
        self._open: list[str] = [""]
        self._budget = 1024 + limit // 2  # prefixes: an honest leaf has several ids
        self.missing: list[bytes] = []
        self.surplus: list[bytes] = []

    def questions(self, most: int = 64) -> list[str]:
        """The next prefixes to ask for; empty when the comparison is over."""
        if len(self.missing) >= self._limit:
            self._open.clear()
        return self._open[:most]

    def answer(self, prefixes: list[str], nodes: list[Node]) -> None:
        """Take the other side's nodes for prefixes that were asked; raises ProtocolViolation for nonsense."""
        if len(nodes) != len(prefixes):
            raise ProtocolViolation("a summary with other prefixes than were asked for")
        self._budget -= len(prefixes)
        if self._budget < 0:
            raise ProtocolViolation("a summary without end")
        asked = set(prefixes)
        self._open = [prefix for prefix in self._open if prefix not in asked]
        for prefix, (ids, children) in zip(prefixes, nodes, strict=True):
            if ids is not None:
                self._compare(prefix, ids)
            elif len(children) != len(_DIGITS) or len(prefix) >= 2 * ID_BYTES - 1:
                raise ProtocolViolation("a summary that is not a tree")
            else:
                self._open += [
                    prefix + digit
                    for digit, theirs in zip(_DIGITS, children, strict=True)
                    if theirs != self._ours.digest(prefix + digit)
                ]

    def _compare(self, prefix: str, ids: tuple[bytes, ...]) -> None:
        if len(ids) > LEAF or any(len(id_) != ID_BYTES or not id_.hex().startswith(prefix) for id_ in ids):
            raise ProtocolViolation("a summary with ids that do not belong there")
        theirs = set(ids)
        self.missing += [id_ for id_ in ids if id_ not in self._ours]
        self.surplus += [id_ for id_ in self._ours.ids(prefix) if id_ not in theirs]
