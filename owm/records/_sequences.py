"""Sequence numbers: ours must grow for ever, others' must not be replayed."""

from __future__ import annotations

from collections import OrderedDict

from owm.identity import PeerId
from owm.records._envelope import SignedRecord
from owm.records.errors import ReplayedRecord

__all__ = ["ReplayGuard"]


class ReplayGuard:
    """Remembers the highest sequence number per issuer and type, for at most ``capacity`` of them (oldest go)."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._highest: OrderedDict[tuple[PeerId, str], int] = OrderedDict()

    def admit(self, record: SignedRecord) -> None:
        """Note a verified record; raises ReplayedRecord when it is not newer than what is known."""
        key = (record.issuer, record.type)
        if record.sequence <= self._highest.get(key, -1):
            raise ReplayedRecord(f"a {record.type} by {record.issuer.short} with sequence {record.sequence} is not new")
        self._highest[key] = record.sequence
        self._highest.move_to_end(key)
        if len(self._highest) > self._capacity:
            self._highest.popitem(last=False)
