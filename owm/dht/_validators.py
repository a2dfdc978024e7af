"""Which values the DHT stores, by the namespace of their key (``/<namespace>/...``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from owm.clock import Clock
from owm.dht._core_types import Validator, Validity
from owm.records import SignedRecord, open_record
from owm.records.errors import FromTheFuture, RecordError, StaleRecord

__all__ = ["RecordValidator", "by_namespace"]

_REMEMBERED: Final = 1024


class RecordValidator:
    """Accepts the signed records of one network, each under its own key only.

    A signature is checked once: the last thousand records are remembered.
    """

    def __init__(self, network_id: str, clock: Clock) -> None:
        self._network_id = network_id
        self._clock = clock
        self._opened: OrderedDict[bytes, SignedRecord] = OrderedDict()

    def open(self, key: bytes, value: bytes) -> SignedRecord | None:
        """The record if it is valid under ``key`` now."""
        try:
            record = self._genuine(value)
        except RecordError:
            return None
        return record if record.dht_key == key and self._ttl(record) > 0 else None

    def _genuine(self, value: bytes) -> SignedRecord:
        """The record, which may have expired since we saw it first; raises RecordError."""
        record = self._opened.get(value)
        if record is None:
            record = self._opened[value] = open_record(value, self._network_id, self._clock.time())
            if len(self._opened) > _REMEMBERED:
                self._opened.popitem(last=False)
        return record

    def _ttl(self, record: SignedRecord) -> float:
        max_age = record.record.LIMITS.max_age
        if max_age is None:
            return float("inf")
        return min(max_age, max_age - (self._clock.time() - record.sequence / 1000))

    def __call__(self, key: bytes, value: bytes) -> Validity | None:
        try:
            record = self._genuine(value)
        except (StaleRecord, FromTheFuture):
            return Validity(0, 0.0)  # signed all right; clocks differ, and an honest peer may still have it
        except RecordError:
            return None
        return Validity(record.sequence, self._ttl(record)) if record.dht_key == key else None


def by_namespace(validators: Mapping[str, Validator]) -> Validator:
    """A validator that asks the one of the key's namespace; keys of other namespaces are refused."""
    table = {name.encode(): validator for name, validator in validators.items()}

    def validate(key: bytes, value: bytes) -> Validity | None:
        parts = key[:64].split(b"/", 2)
        validator = table.get(parts[1]) if len(parts) == 3 and not parts[0] else None
        return validator(key, value) if validator is not None else None

    return validate
