"""Answers kept for who asked, so that they can be fetched again for an hour."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from owm.api._bodies import QueryResponse
from owm.api.errors import NotFound

__all__ = ["Results"]

_LIFE = 3600.0  #: seconds
_PER_OWNER = 100
_BYTES_PER_OWNER = 1024 * 1024
_BYTES = 64 * 1024 * 1024
_OVERHEAD = 1024  #: bytes counted for an answer besides its text


class _Result(msgspec.Struct, frozen=True):
    owner: str
    at: float
    size: int
    response: QueryResponse


class _Kept(msgspec.Struct):
    """What one owner has, the oldest first."""

    size: int = 0
    ids: OrderedDict[str, None] = msgspec.field(default_factory=OrderedDict)


class Results:
    """The newest answers of each owner, for an hour: bounded per owner, so that a busy one evicts only its own.

    Args:
        per_owner: answers kept for one owner.
        bytes_per_owner: of their texts together; an answer that is larger than that is not kept.
        max_bytes: for all owners together; past it the oldest go, whoever's they are.
        life: seconds.
    """

    def __init__(
        self,
        per_owner: int = _PER_OWNER,
        bytes_per_owner: int = _BYTES_PER_OWNER,
        max_bytes: int = _BYTES,
        life: float = _LIFE,
    ) -> None:
        self._per_owner = per_owner
        self._bytes_per_owner = bytes_per_owner
        self._max_bytes = max_bytes
        self._life = life
        self._results: OrderedDict[str, _Result] = OrderedDict()
        self._owners: dict[str, _Kept] = {}
        self.size = 0  #: bytes counted, of all

    def __len__(self) -> int:
        return len(self._results)

    def put(self, owner: str, response: QueryResponse, now: float) -> None:
        size = len(response.answer.encode("utf-8", "surrogatepass")) + _OVERHEAD
        if size > self._bytes_per_owner:
            return
        kept = self._owners.setdefault(owner, _Kept())
        while kept.ids and (len(kept.ids) >= self._per_owner or kept.size + size > self._bytes_per_owner):
            self._drop(next(iter(kept.ids)))
        kept = self._owners.setdefault(owner, _Kept())  # dropping the last one forgets the owner
        kept.ids[response.query_id] = None
        kept.size += size
        self.size += size
        self._results[response.query_id] = _Result(owner, now, size, response)
        while self._results:
            oldest, result = next(iter(self._results.items()))
            if self.size <= self._max_bytes and result.at >= now - self._life:
                break
            self._drop(oldest)

    def get(self, owner: str, query_id: str, now: float) -> QueryResponse:
        """Raises NotFound, in the same words, if it is unknown, too old or somebody else's."""
        result = self._results.get(query_id)
        if result is None or result.owner != owner or result.at < now - self._life:
            raise NotFound("there is no such query of yours; answers are kept for an hour")
        return result.response

    def _drop(self, query_id: str) -> None:
        result = self._results.pop(query_id)
        self.size -= result.size
        kept = self._owners[result.owner]
        kept.size -= result.size
        del kept.ids[query_id]
        if not kept.ids:
            del self._owners[result.owner]
