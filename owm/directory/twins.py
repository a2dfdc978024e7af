"""Two machines with one identity key find out about each other.

They look like one peer to everybody, so nobody connects them with each other, and what one of them publishes may never
reach the other. So each peer now and then shows its manifest to a few peers that it is connected to, and gets back a
manifest that was signed with the same key by another process, if they have heard of one: the nonce tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Final, Self

import structlog
import trio

from owm.clock import Clock
from owm.identity import PeerId
from owm.net import Call, Calls, Network, Rate
from owm.net.errors import NetworkError, RemoteError
from owm.records import CapabilityManifest, SignedRecord, open_record
from owm.records.errors import RecordError

__all__ = ["TwinWatch"]

_log = structlog.get_logger(__name__)

_FIRST_LOOK: Final = 10.0
_EVERY: Final = 60.0
_ASKED: Final = 3  #: peers at each look
_ASK_SECONDS: Final = 10.0
_KEPT: Final = 180.0  #: seconds for which a shown manifest is remembered, as long as it is valid
_MOST: Final = 4096  #: peers whose manifests are remembered
_MOST_BYTES: Final = CapabilityManifest.LIMITS.max_bytes


class TwinWatch:
    """Asks others about our twins, and answers them about theirs.

    Args:
        protocol: its id.
        latest: our newest manifest, None before the first.
        known: somebody's newest manifest as gossip brought it, None where there is none.
        holders: connected peers that are likely to know who uses our id.
        found: called with each manifest of ours that another process made.
    """

    def __init__(
        self,
        network: Network,
        protocol: str,
        network_id: str,
        clock: Clock,
        random: Random,
        *,
        latest: Callable[[], SignedRecord | None],
        known: Callable[[PeerId], SignedRecord | None],
        holders: Callable[[], Sequence[PeerId]],
        found: Callable[[SignedRecord], object],
    ) -> None:
        self._network = network
        self._network_id = network_id
        self._clock = clock
        self._random = random
        self._latest = latest
        self._known = known
        self._holders = holders
        self._found = found
        self._calls = Calls(
            network, protocol, max_request=_MOST_BYTES, max_response=_MOST_BYTES, max_calls=4, rate=Rate(1.0, 20.0)
        )
        self._shown: OrderedDict[PeerId, dict[bytes, tuple[float, SignedRecord]]] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Ask and answer until the block ends."""
        async with self._calls.running(), trio.open_nursery() as nursery:
            self._calls.serve(self._answer)
            nursery.start_soon(self._look_around)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    async def _look_around(self) -> None:
        await trio.sleep(_FIRST_LOOK)
        while True:
            ours = self._latest()
            if ours is not None:
                for peer in self._choose():
                    await self._ask(peer, ours)
            await trio.sleep(_EVERY * self._random.uniform(0.8, 1.0))

    def _choose(self) -> list[PeerId]:
        likely = list(self._holders())
        others = [peer for peer in self._network.peers() if peer not in likely]
        chosen = self._random.sample(likely, min(len(likely), _ASKED))
        return chosen + self._random.sample(others, min(len(others), _ASKED - len(chosen)))

    async def _ask(self, peer: PeerId, ours: SignedRecord) -> None:
        try:
            answer = await self._calls.request(peer, ours.envelope, timeout=_ASK_SECONDS)
            if answer:
                self._found(open_record(answer, self._network_id, self._clock.time(), issuer=self._network.peer_id))
        except (NetworkError, RecordError) as error:
            _log.debug("a peer could not say whether somebody uses our key", peer=peer.short, reason=str(error))

    async def _answer(self, call: Call) -> None:
        try:
            shown = open_record(call.request, self._network_id, self._clock.time(), issuer=call.peer)
        except RecordError as error:
            raise RemoteError(f"not a manifest of yours: {error}") from error
        if not isinstance(shown.record, CapabilityManifest):
            raise RemoteError("not a manifest")
        now, nonce = self._clock.monotonic(), shown.record.nonce
        kept = self._shown.setdefault(call.peer, {})
        self._shown.move_to_end(call.peer)
        for old in [key for key, (at, _) in kept.items() if now - at > _KEPT]:
            del kept[old]
        others = [record for key, (_, record) in kept.items() if key != nonce]
        gossiped = self._known(call.peer)
        if gossiped is not None and _nonce(gossiped) != nonce:
            others.append(gossiped)
        kept.pop(nonce, None)
        while len(kept) > 1:  # of a crowd with one key two are enough
            del kept[next(iter(kept))]
        kept[nonce] = (now, shown)
        if len(self._shown) > _MOST:
            self._shown.popitem(last=False)
        await call.reply(max(others, key=lambda record: record.sequence).envelope if others else b"")


def _nonce(record: SignedRecord) -> bytes:
    manifest = record.record
    return manifest.nonce if isinstance(manifest, CapabilityManifest) else b""
