"""A network in memory, in virtual time: what tests and scenarios use in place of sockets.

Real code runs over it unchanged. Links have latency, jitter, bandwidth and loss, peers sit behind NATs, and partitions
hold up one direction or both. Under trio's autojump clock an hour passes in no time. All chance comes from the hub's
random source, one stream of it per direction of a link.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from random import Random

from owm.identity import Identity, PeerId
from owm.net._limits import NetworkLimits
from owm.net._memory_link import Link, Nat, Timeline, Wire
from owm.net._memory_network import MemoryNetwork
from owm.net._memory_stream import MemoryConnection
from owm.net.errors import NetworkError

__all__ = ["MemoryHub"]


class MemoryHub:
    """Where the peers of one memory network meet.

    Args:
        random: the source of all chance: jitter, loss, resets.
        default: the link between peers for which none was set.
    """

    def __init__(self, random: Random, default: Link = Link()) -> None:  # noqa: B008 - frozen
        self._seed = random.getrandbits(64)
        self._default = default
        self._links: dict[frozenset[PeerId], Link] = {}
        self._blocked: set[tuple[PeerId, PeerId]] = set()
        self._running: dict[str, MemoryNetwork] = {}  # by address
        self._hosts = itertools.count(1)
        self._wires = itertools.count()
        #: told of all data that arrives: from whom, at whom, on which protocol
        self.observer: Callable[[PeerId, PeerId, str, bytes], None] | None = None

    def network(
        self,
        peer: Identity | PeerId,
        *,
        address: str | None = None,
        nat: Nat = Nat.PUBLIC,
        limits: NetworkLimits = NetworkLimits(exempt_local=True),  # noqa: B008 - frozen
    ) -> MemoryNetwork:
        """A peer's access; enter its ``running()``. ``address`` is a multiaddr, or one of 10.0.0.0/8 is given out."""
        host = next(self._hosts)
        address = address or f"/ip4/10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}/tcp/9000"
        return MemoryNetwork(self, peer, address, nat, limits)

    def link(self, a: PeerId, b: PeerId, link: Link) -> None:
        """Set the link between two peers, from now on and in both directions."""
        self._links[frozenset((a, b))] = link

    def partition(self, a: Iterable[PeerId], b: Iterable[PeerId], *, one_way: bool = False) -> None:
        """Hold up all that goes from ``a`` to ``b``, and back unless ``one_way``, until healed.

        Nothing is lost before the keep-alive gives a connection up (30 s), and a dial fails either way round: it needs
        both directions.
        """
        for first, second in itertools.product(tuple(a), tuple(b)):
            self._blocked.add((first, second))
            if not one_way:
                self._blocked.add((second, first))
        self._connections_changed()

    def heal(self) -> None:
        """End all partitions."""
        self._blocked.clear()
        self._connections_changed()

    def link_between(self, a: PeerId, b: PeerId) -> Link:
        return self._links.get(frozenset((a, b)), self._default)

    def is_blocked(self, source: PeerId, target: PeerId) -> bool:
        return (source, target) in self._blocked

    def find(self, address: str) -> MemoryNetwork | None:
        """The running peer at an address."""
        return self._running.get(address)

    def enter(self, network: MemoryNetwork) -> None:
        for address in network.addresses:
            if address in self._running:
                raise NetworkError(f"the address {address} is in use")
            self._running[address] = network

    def leave(self, network: MemoryNetwork) -> None:
        for address in network.addresses:
            self._running.pop(address, None)

    def wire(self, source: MemoryConnection, near: Timeline, far: Timeline) -> Wire:
        """The direction of a connection that starts at ``source``."""
        local, remote = source.local, source.remote
        number = next(self._wires)

        def broken(reason: str) -> None:
            source.drop(reason, tell=False)
            source.other.drop(reason, tell=False)

        return Wire(
            link=lambda: self.link_between(local, remote),
            random=Random(f"{self._seed}:{local.hex()}:{remote.hex()}:{number}"),  # noqa: S311 - a simulation
            source=near,
            target=far,
            blocked=lambda: self.is_blocked(local, remote),
            broken=broken,
        )

    def _connections_changed(self) -> None:
        for network in {id(network): network for network in self._running.values()}.values():
            network.partitions_changed()
