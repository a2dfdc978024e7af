"""Peers of the same network on the local network, by multicast DNS service discovery (RFC 6762, RFC 6763).

The service type carries the network's id, so that a devnet's peers do not turn up on mainnet. What is learned this way
is a lead, nothing more: who answers at the address has to prove its identity like anybody else.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import structlog
import trio
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from owm.identity import PeerId

__all__ = ["LocalDiscovery"]

_log = structlog.get_logger(__name__)

_MOST_PEERS: Final = 64
_MOST_ADDRESSES: Final = 8
_ASK_MS: Final = 2000


class LocalDiscovery:
    """Announces this peer on the local network and collects the others. Use as ``async with discovery.running():``.

    Args:
        addresses: the multiaddrs to announce, asked for when the discovery starts.
        interfaces: IP addresses of the interfaces to use; all of them by default.
    """

    def __init__(
        self,
        peer: PeerId,
        network_id: str,
        addresses: Callable[[], Sequence[str]],
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._peer = peer
        self._type = f"_owm-{network_id[:8]}._tcp.local."
        self._addresses = addresses
        self._interfaces = interfaces
        self._found: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    def peers(self) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Who was heard on the local network, the latest last."""
        return list(self._found.items())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Announce and listen until the block ends. Where multicast cannot be used, nothing is found, and a log line
        says so."""
        try:
            zeroconf = await trio.to_thread.run_sync(self._start)
        except OSError as error:
            _log.warning("the local network cannot be searched for peers", reason=str(error))
            yield self
            return
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(zeroconf.close)

    def _start(self) -> Zeroconf:
        """Blocking; the library answers and listens in a thread of its own from here on."""
        if self._interfaces is None:
            zeroconf = Zeroconf(ip_version=IPVersion.V4Only)
        else:
            zeroconf = Zeroconf(interfaces=list(self._interfaces), ip_version=IPVersion.V4Only)
        addresses = list(self._addresses())[:_MOST_ADDRESSES]
        info = ServiceInfo(
            self._type,
            f"{self._peer}.{self._type}",
            port=_port_of(addresses),
            properties={"id": str(self._peer), **{f"a{n}": address for n, address in enumerate(addresses)}},
            server=f"{str(self._peer)[-16:]}.local.",
            addresses=[socket.inet_aton("127.0.0.1")],  # the real ones are in the text record, with their protocols
        )
        zeroconf.register_service(info, allow_name_change=False)
        ServiceBrowser(zeroconf, self._type, handlers=[self._on_change])
        return zeroconf

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called in the library's thread; the dictionary's operations are atomic."""
        if state_change is ServiceStateChange.Removed:
            return  # leads grow old by themselves: a dial tells
        info = zeroconf.get_service_info(service_type, name, timeout=_ASK_MS)
        if info is None:
            return
        try:
            peer = PeerId.parse(_text(info.properties.get(b"id")))
        except ValueError:
            return
        addresses = [_text(info.properties.get(b"a%d" % number)) for number in range(_MOST_ADDRESSES)]
        found = tuple(address for address in addresses if address.startswith("/ip"))
        if peer == self._peer or not found:
            return
        self._found[peer] = found
        if len(self._found) > _MOST_PEERS:
            self._found.popitem(last=False)


def _port_of(addresses: Sequence[str]) -> int:
    """The first TCP port among the multiaddrs; the record needs one."""
    for address in addresses:
        parts = address.split("/")
        if "tcp" in parts[:-1]:
            return int(parts[parts.index("tcp") + 1])
    return 0


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")
