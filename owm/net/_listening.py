"""Accepting connections, and which addresses to tell others."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import psutil
import structlog
import trio

from owm.net._transport import multiaddr_of

__all__ = ["AddressBook", "serve_listener"]

_log = structlog.get_logger(__name__)
_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_REST: Final = 0.1  # seconds to wait when the machine has no more of something


async def serve_listener(listener: trio.SocketListener, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    """Accept for ever; no connection, and no lack of file descriptors, ends it."""

    async def one(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except Exception:  # noqa: BLE001 - a stranger must not end the listener
            _log.exception("serving a new connection failed")
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                level = _log.warning if error.errno in _OUT_OF else _log.debug
                level("cannot accept a connection", error=error.strerror)
                await trio.sleep(_REST)
                continue
            nursery.start_soon(one, stream)


class AddressBook:
    """The multiaddrs under which others can dial us.

    Args:
        announce: these and no others, if given.
    """

    def __init__(self, announce: Sequence[str] | None) -> None:
        self._announce = None if announce is None else tuple(announce)
        self.addresses: tuple[str, ...] = self._announce or ()

    def listening(self, listeners: Sequence[trio.SocketListener]) -> None:
        """We listen now; an unspecified address (0.0.0.0) stands for those of all interfaces."""
        if self._announce is not None:
            return
        found: dict[str, None] = {}
        for listener in listeners:
            name = listener.socket.getsockname()
            if ipaddress.ip_address(name[0]).is_unspecified:
                for host in _interface_hosts(six=":" in name[0]):
                    found[multiaddr_of((host, name[1]))] = None
            else:
                found[multiaddr_of(name)] = None
        self.addresses = tuple(found)


def _interface_hosts(*, six: bool) -> list[str]:
    """The machine's own addresses, those of the loopback last."""
    hosts: list[str] = []
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            host = str(entry.address).partition("%")[0]
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                continue  # a hardware address
            if (address.version == 6) == six and not address.is_link_local:
                hosts.append(host)
    return sorted(hosts, key=lambda host: ipaddress.ip_address(host).is_loopback)
