"""Fetching sets of records from a neighbour: the current ones of a topic, and what a grow-only set lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, Self, TypeVar

import msgspec
import trio

from owm.gossip._core_reconcile import ID_BYTES, Node, Reconciliation, Summary
from owm.identity import PeerId
from owm.net import Call, Calls, Network, Rate
from owm.net.errors import ProtocolViolation, RemoteError
from owm.records import SignedRecord

__all__ = ["SyncService"]

T = TypeVar("T")

_MAX_REPLY: Final = 1 << 20
_MAX_PREFIXES: Final = 64
_MAX_IDS: Final = 1024
_MAX_FETCHED: Final = 20_000
_TIMEOUT: Final = 5.0
_REMEMBER: Final = 1.0  # seconds for which one summary of a topic serves all that ask


class _Compare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="compare"):
    topic: str
    prefixes: list[str]


class _Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="fetch"):
    topic: str
    ids: list[bytes]


_requests = msgspec.msgpack.Decoder(_Compare | _Fetch)
_nodes = msgspec.msgpack.Decoder(list[Node])
_records = msgspec.msgpack.Decoder(list[bytes])
_encode = msgspec.msgpack.encode


class SyncService:
    """Answers and asks on ``/owm/<network>/sync/1``; ids are those of the records.

    What is fetched is checked by nobody here: the caller opens each envelope.
    """

    def __init__(self, network: Network, *, network_id: str) -> None:
        protocol = f"/owm/{network_id}/sync/1"
        self._calls = Calls(network, protocol, max_request=64 * 1024, max_response=_MAX_REPLY, rate=Rate(20, 200))
        self._sources: dict[str, Callable[[], Iterable[SignedRecord]]] = {}
        self._views: dict[str, tuple[float, Summary, dict[bytes, bytes]]] = {}
        self._calls.serve(self._answer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        async with self._calls.running():
            yield self

    def register(self, topic: str, current: Callable[[], Iterable[SignedRecord]]) -> None:
        """Answer for ``topic`` with what ``current`` returns at the time."""
        self._sources[topic] = current
        self._views.pop(topic, None)

    async def fetch_all(self, peer: PeerId, topic: str) -> list[bytes]:
        """The envelopes of the peer's set that ours lacks; all of them where we hold none.

        Raises:
            NetworkError, ProtocolNotSupported, ProtocolViolation: of that peer.
        """
        ours = self._view(topic)[0] if topic in self._sources else Summary()
        comparison = Reconciliation(ours, _MAX_FETCHED)
        while prefixes := comparison.questions(_MAX_PREFIXES):
            nodes = await self._ask(peer, _Compare(topic, prefixes), _nodes)
            comparison.answer(prefixes, nodes)
        out: list[bytes] = []
        wanted = comparison.missing[:_MAX_FETCHED]
        while wanted:
            got = await self._ask(peer, _Fetch(topic, wanted[:_MAX_IDS]), _records)
            if not got or len(got) > len(wanted[:_MAX_IDS]):
                break  # the records have expired there meanwhile, or the peer is talking nonsense
            out += got
            wanted = wanted[len(got) :]
        return out

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
        summary, envelopes = self._view(request.topic)
        if isinstance(request, _Compare):
            if len(request.prefixes) > _MAX_PREFIXES or not all(map(_is_prefix, request.prefixes)):
                raise ProtocolViolation("prefixes of a set that cannot be")
            await call.reply(_encode([summary.node(prefix) for prefix in request.prefixes]))
            return
        out: list[bytes] = []
        size = 0
        for id_ in request.ids[:_MAX_IDS]:
            envelope = envelopes.get(id_)
            if envelope is None:
                continue
            size += len(envelope) + 8
            if size > _MAX_REPLY - 1024:
                break
            out.append(envelope)
        await call.reply(_encode(out))

    def _view(self, topic: str) -> tuple[Summary, dict[bytes, bytes]]:
        found = self._views.get(topic)
        if found is None or trio.current_time() - found[0] > _REMEMBER:
            envelopes = {record.id: record.envelope for record in self._sources[topic]()}
            found = self._views[topic] = (trio.current_time(), Summary(envelopes), envelopes)
        return found[1], found[2]


def _is_prefix(text: str) -> bool:
    return len(text) < 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in text)
