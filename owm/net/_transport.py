"""Where byte streams come from: TCP, dialled and listened for, and whatever else can reach an address."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from owm.identity import PeerId
from owm.net.errors import DialFailed, NetworkError

__all__ = ["Endpoint", "Reach", "dial_tcp", "listen_tcp", "parse_endpoint", "remote_multiaddr", "tune"]

Reach = Callable[[str], Awaitable[trio.abc.Stream]]
"""Opens a byte stream to an address beyond plain TCP, such as ``/onion3/...``; raises OSError or DialFailed."""

_NAME_PROTOCOLS: Final = frozenset({"dns", "dns4", "dns6"})
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
_ZONE: Final = re.compile(r"[a-z0-9._-]{1,15}", re.IGNORECASE)
_LONGEST_NAME: Final = 253
_NOT_SENT_LOW: Final = 128 * 1024  # bytes the kernel may hold unsent: what waits there no small message can overtake
_BACKLOG: Final = 512


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address, and whom to expect there if the multiaddr says so."""

    host: str
    port: int
    peer: PeerId | None = None


def parse_endpoint(multiaddr: str) -> Endpoint | None:
    """Read ``/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>[/p2p/<id>]``; None for any other address.

    Addresses come from strangers: an IP address must be one, and a name must be one that the DNS can hold.
    """
    parts = multiaddr.split("/")
    if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
        return None
    host = _host(parts[1], parts[2])
    if host is None or not (parts[4].isascii() and parts[4].isdigit() and len(parts[4]) <= 5):
        return None
    port = int(parts[4])
    if port > 65535:
        return None
    peer = None
    if len(parts) == 7:
        try:
            peer = PeerId.parse(parts[6]) if parts[5] == "p2p" else None
        except ValueError:
            return None
        if peer is None:
            return None
    return Endpoint(host, port, peer)


def _host(protocol: str, value: str) -> str | None:
    """The host as the resolver takes it; None where it is not what the protocol says."""
    try:
        if protocol == "ip4":
            return str(ipaddress.IPv4Address(value))
        if protocol == "ip6":
            address, mark, zone = value.partition("%")
            return str(ipaddress.IPv6Address(address)) + mark + zone if _ZONE.fullmatch(zone or "0") else None
        if protocol in _NAME_PROTOCOLS and len(value) <= _LONGEST_NAME:
            name = value.encode("idna").decode("ascii")
            labels = name.removesuffix(".").split(".")
            if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
                return None  # resolvers take such names for IP addresses written in older ways
            return name if len(name) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, labels)) else None
    except ValueError:  # UnicodeError is one
        return None
    return None


async def dial_tcp(endpoint: Endpoint) -> trio.SocketStream:
    """Connect.

    Raises:
        DialFailed: nobody listens there, or the name is unknown or none.
    """
    try:
        stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except ValueError as error:  # a host that the resolver does not take
        raise DialFailed("not a host that can be dialled") from error
    except OSError as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise DialFailed(_in_words(reason)) from error
    tune(stream)
    return stream


async def listen_tcp(multiaddrs: Sequence[str]) -> list[trio.SocketListener]:
    """Open listeners, all or none. Port 0 takes one that is free.

    Raises:
        NetworkError: an address is not ours to listen on, or is taken.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for multiaddr in multiaddrs:
            endpoint = parse_endpoint(multiaddr)
            if endpoint is None or endpoint.peer is not None:
                raise NetworkError(f"cannot listen on {multiaddr}: expected /ip4/<address>/tcp/<port>")
            try:
                listeners += await trio.open_tcp_listeners(endpoint.port, host=endpoint.host, backlog=_BACKLOG)
            except OSError as error:
                raise NetworkError(f"cannot listen on {multiaddr}: {_in_words(error)}") from error
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def remote_multiaddr(stream: trio.SocketStream) -> str:
    """The multiaddr of the other end; raises OSError when it is gone already."""
    return multiaddr_of(stream.socket.getpeername())


def multiaddr_of(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """A socket name as a multiaddr; IPv4 in its IPv6 disguise counts as IPv4."""
    host = name[0].partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{name[1]}"


def tune(stream: trio.SocketStream) -> None:
    """Send at once, and keep the queue in our own hands instead of the kernel's."""
    with suppress(OSError):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOT_SENT_LOW)


def _in_words(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused"
    if error.errno == errno.EADDRINUSE:
        return "the address is in use"
    return error.strerror or str(error) or type(error).__name__
