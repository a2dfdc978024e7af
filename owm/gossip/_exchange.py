"""Peer exchange: who leaves a full mesh is told of others in it, each by the record that it signed of itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

import structlog
import trio

from owm.gossip._core_state import Exchange
from owm.identity import PeerId
from owm.net import Network, Quota, Rate, is_local, open_peer_record
from owm.net.errors import NetworkError

__all__ = ["PeerExchange"]

_log = structlog.get_logger(__name__)

_PER_PRUNE: Final = 4  # of those that one PRUNE names
_RATE: Final = Rate(0.1, 12)  # of all together: who is trusted with this must still not make us a dialling machine
_WAITING: Final = 8
_ADDRESSES: Final = 4
_DIAL_SECONDS: Final = 10.0


class PeerExchange:
    """Checks and dials the peers that well-behaved ones recommend, a few at a time.

    Args:
        network: dials, with its own back-off and limits.
        random: chooses among many.
    """

    def __init__(self, network: Network, random: Random) -> None:
        self._network = network
        self._random = random
        self._quota = Quota(_RATE)
        self._waiting: deque[tuple[PeerId, tuple[str, ...]]] = deque(maxlen=_WAITING)
        self._some = trio.Event()
        self.dialled = 0

    def take(self, offer: Exchange[PeerId]) -> None:
        """Note some of those that ``offer`` names; strangers without a valid record of their own are none."""
        connection = self._network.connection(offer.source)
        if connection is None:
            return
        local = is_local(connection.address)  # nobody outside may have us dial into our own house
        fresh = [(name, record) for name, record in offer.peers if self._is_new(name) and record]
        for name, record in self._random.sample(fresh, min(_PER_PRUNE, len(fresh))):
            if not self._quota.take(1, trio.current_time()):
                return
            try:
                found = open_peer_record(record)
            except ValueError as error:
                _log.debug("a peer record is not valid", source=offer.source.short, error=str(error))
                continue
            addresses = tuple(address for address in found.addresses if local or not is_local(address))[:_ADDRESSES]
            if bytes(found.peer) == name and addresses:
                self._waiting.append((found.peer, addresses))
                self._some.set()

    async def run(self, reached: Callable[[PeerId], None]) -> None:
        """Dial for ever, one after another; ``reached`` is called with each that we are connected to then."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._waiting:
                peer, addresses = self._waiting.popleft()
                if self._network.is_connected(peer):
                    continue
                self.dialled += 1
                try:
                    with trio.move_on_after(_DIAL_SECONDS):
                        reached(await self._network.connect(peer, addresses))
                except NetworkError as error:
                    _log.debug("a recommended peer was not reached", peer=peer.short, error=str(error))

    def _is_new(self, name: bytes) -> bool:
        try:
            peer = PeerId(name)
        except ValueError:
            return False
        return peer != self._network.peer_id and not self._network.is_connected(peer)
