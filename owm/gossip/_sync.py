"""Sets of records between neighbours: comparing them, fetching what we lack, giving what the other lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, Self, TypeVar

import msgspec
import trio

from owm.gossip._core_reconcile import ID_BYTES, Node, Reconciliation, Summary
from owm.gossip._core_wire import Message
from owm.gossip._identifiers import record_message_id
from owm.identity import PeerId
from owm.net import Call, Calls, Network, Rate
from owm.net.errors import ProtocolViolation, RemoteError
from owm.records import MAX_RECORD_BYTES, SignedRecord

__all__ = ["SyncService"]

T = TypeVar("T")

_MAX_REPLY: Final = 1 << 20
_MAX_PREFIXES: Final = 64
_MAX_IDS: Final = 1024
_MAX_REQUEST: Final = MAX_RECORD_BYTES + 8 * 1024
_TIMEOUT: Final = 5.0
_FEW: Final = 256  # new ids that are added to a summary; with more it is made anew
_REMEMBER: Final = 1.0  # seconds for which one summary of a topic serves all that ask


class _Compare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="compare"):
    topic: str
    prefixes: list[str]


class _Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="fetch"):
    topic: str
    ids: list[bytes]


class _Give(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="give"):
    topic: str
    records: list[bytes]


_requests = msgspec.msgpack.Decoder(_Compare | _Fetch | _Give)
_nodes = msgspec.msgpack.Decoder(list[Node])
_records = msgspec.msgpack.Decoder(list[bytes])
_count = msgspec.msgpack.Decoder(int)
_encode = msgspec.msgpack.encode


class SyncService:
    """Answers and asks on ``/owm/<network>/sync/1``; ids are those that the records have as messages.

    A record's own id will not do: it does not name the issuer, and whoever signs another's payload with its own key
    could make others believe that they have the true one.

    What is fetched is checked by nobody here: the caller opens each envelope.

    Args:
        take: is handed what a peer gives to a grow-only topic; returns how many of the records it looked at.
    """

    def __init__(
        self,
        network: Network,
        *,
        network_id: str,
        take: Callable[[str, list[bytes], PeerId], Awaitable[int]] | None = None,
    ) -> None:
        protocol = f"/owm/{network_id}/sync/1"
        self._calls = Calls(
            network, protocol, max_request=_MAX_REQUEST, max_response=_MAX_REPLY, rate=Rate(20, 200), control=True
        )
        self._sources: dict[str, Callable[[], Iterable[SignedRecord]]] = {}
        self._growing: set[str] = set()
        self._message_id = record_message_id(network_id)
        self._views: dict[str, _View] = {}
        self._take = take
        self._calls.serve(self._answer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        async with self._calls.running():
            yield self

    def register(self, topic: str, current: Callable[[], Iterable[SignedRecord]], *, grow_only: bool = False) -> None:
        """Answer for ``topic`` with what ``current`` returns at the time; to a grow-only one, others may add."""
        self._sources[topic] = current
        (self._growing.add if grow_only else self._growing.discard)(topic)
        self._views.pop(topic, None)

    def growing(self) -> tuple[str, ...]:
        """The topics that are grow-only sets."""
        return tuple(sorted(self._growing))

    def lacking(self, topic: str, ids: list[bytes]) -> list[bytes]:
        """Those of ``ids`` that our set of the topic lacks; all of them where we hold none."""
        if not ids or topic not in self._sources:
            return ids
        ours = self._view(topic).summary
        return [id_ for id_ in ids if id_ not in ours]

    async def compare(self, peer: PeerId, topic: str, limit: int, heard: Callable[[], None]) -> Reconciliation:
        """Compare our set of ``topic`` with the peer's; without a set of ours it lacks nothing and we lack all.

        Args:
            limit: ids that we may lack; the comparison ends there.
            heard: called at each answer.

        Raises:
            NetworkError, ProtocolNotSupported, ProtocolViolation: of that peer.
        """
        ours = self._view(topic).summary if topic in self._sources else Summary()
        comparison = Reconciliation(ours, limit)
        while prefixes := comparison.questions(_MAX_PREFIXES):
            nodes = await self._ask(peer, _Compare(topic, prefixes), _nodes)
            heard()
            comparison.answer(prefixes, nodes)
        return comparison

    async def fetch(self, peer: PeerId, topic: str, ids: list[bytes]) -> list[bytes]:
        """The envelopes of those records, in this order, as many as fit; the peer may have lost some meanwhile.

        Raises:
            NetworkError, ProtocolNotSupported, ProtocolViolation: of that peer.
        """
        asked = ids[:_MAX_IDS]
        got = await self._ask(peer, _Fetch(topic, asked), _records)
        if len(got) > len(asked):
            raise ProtocolViolation("more records than were asked for")
        return got

    async def give(self, peer: PeerId, topic: str, ids: list[bytes]) -> tuple[int, int]:
        """Offer the first of our records with these ids, as many as fit; returns how many went and were looked at.

        Raises:
            NetworkError, ProtocolNotSupported, ProtocolViolation: of that peer.
        """
        envelopes = self._view(topic).envelopes
        batch: list[bytes] = []
        given = size = 0
        for id_ in ids:
            envelope = envelopes.get(id_, b"")
            size += len(envelope) + 8
            if size > MAX_RECORD_BYTES + 1024:
                break
            given += 1
            if envelope:
                batch.append(envelope)
        if not batch:
            return given, given
        taken = await self._ask(peer, _Give(topic, batch), _count)
        return given, given if taken >= len(batch) else min(taken, given - 1)

    async def _ask(self, peer: PeerId, request: msgspec.Struct, decoder: msgspec.msgpack.Decoder[T]) -> T:
        reply = await self._calls.request(peer, _encode(request), timeout=_TIMEOUT)
        try:
            return decoder.decode(reply)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"not an answer about a set: {error}") from error

    async def _answer(self, call: Call) -> None:
        try:
            request = _requests.decode(call.request)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"not a request about a set: {error}") from error
        if request.topic not in self._sources:
            raise RemoteError("that set is not kept here")
        view = self._view(request.topic)
        if isinstance(request, _Compare):
            if len(request.prefixes) > _MAX_PREFIXES or not all(map(_is_prefix, request.prefixes)):
                raise ProtocolViolation("prefixes of a set that cannot be")
            await call.reply(_encode([view.summary.node(prefix) for prefix in request.prefixes]))
            return
        if isinstance(request, _Give):
            if request.topic not in self._growing or self._take is None:
                raise RemoteError("nothing is added to that set")
            await call.reply(_encode(await self._take(request.topic, request.records, call.peer)))
            return
        out: list[bytes] = []
        size = 0
        for id_ in request.ids[:_MAX_IDS]:
            envelope = view.envelopes.get(id_)
            if envelope is None:
                continue
            size += len(envelope) + 8
            if size > _MAX_REPLY - 1024:
                break
            out.append(envelope)
        await call.reply(_encode(out))

    def _view(self, topic: str) -> _View:
        found = self._views.get(topic)
        if found is None or trio.current_time() - found.since > _REMEMBER:
            known = found.ids if found is not None else {}
            envelopes = [record.envelope for record in self._sources[topic]()]
            ids = {data: known.get(data) or self._message_id(Message(topic, data)) for data in envelopes}
            if found is not None and found.ids.keys() == ids.keys():
                found.since = trio.current_time()  # its digests serve on
            else:
                found = self._views[topic] = _View(trio.current_time(), ids, found)
        return found


class _View:
    """What a set was a moment ago."""

    def __init__(self, since: float, ids: dict[bytes, bytes], before: _View | None) -> None:
        self.since = since
        self.ids = ids  #: by envelope
        self.envelopes = {id_: envelope for envelope, id_ in ids.items()}
        new = [] if before is None else [id_ for id_ in self.envelopes if id_ not in before.summary]
        if before is not None and len(new) <= _FEW and len(before.summary) + len(new) == len(self.envelopes):
            summary = before.summary.grown(new)
        else:
            summary = Summary(self.envelopes)
        self.summary: Summary = summary


def _is_prefix(text: str) -> bool:
    return len(text) < 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in text)
