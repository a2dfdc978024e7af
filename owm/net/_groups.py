"""Subnet groups: which addresses count as one operator's, for caps and diversity.

Addresses are cheap inside a network and dear across networks, so IPv4 counts by /16 and IPv6 by /32, the usual size of
one operator's allocation (Bitcoin Core's netgroups and libp2p's kad-dht diversity filter draw the line there too).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

__all__ = ["ONION_GROUP", "group_of", "is_local"]

ONION_GROUP = "onion"
_NAME_PROTOCOLS = frozenset({"dns", "dns4", "dns6", "dnsaddr"})
_ONION_PROTOCOLS = frozenset({"onion", "onion3"})
_KNOWN = 4096  # addresses whose group is remembered: the same few are judged again and again


@lru_cache(maxsize=_KNOWN)
def group_of(multiaddr: str) -> str:
    """The group of an address: ``"ip4:203.0"``, ``"ip6:2001:db8"``, ``"onion"``, ``"dns"``, ``"relay"`` or ``"other"``.

    An IPv6 address that carries an IPv4 one (mapped, 6to4, Teredo) is grouped by the latter. Onion addresses, and names
    not resolved yet, are one group each: a thousand of them cost nothing. Never raises.
    """
    parts = multiaddr.split("/", 4)
    protocol, value = (parts[1], parts[2]) if len(parts) > 2 else ("", "")
    if "/p2p-circuit" in multiaddr:
        return "relay"
    if protocol in _ONION_PROTOCOLS:
        return ONION_GROUP
    if protocol in _NAME_PROTOCOLS:
        return "dns"
    address = _parse(protocol, value)
    if isinstance(address, IPv4Address):
        return f"ip4:{address.packed[0]}.{address.packed[1]}"
    if isinstance(address, IPv6Address):
        return f"ip6:{address.packed[:2].hex()}:{address.packed[2:4].hex()}"
    return "other"


@lru_cache(maxsize=_KNOWN)
def is_local(multiaddr: str) -> bool:
    """Whether the address is loopback, link-local or private; only devnets exempt these from caps. Never raises."""
    parts = multiaddr.split("/", 4)
    address = _parse(parts[1], parts[2]) if len(parts) > 2 and "/p2p-circuit" not in multiaddr else None
    return address is not None and (address.is_private or address.is_loopback or address.is_link_local)


def _parse(protocol: str, value: str) -> IPv4Address | IPv6Address | None:
    try:
        if protocol == "ip4":
            return IPv4Address(value)
        if protocol == "ip6":
            address = IPv6Address(value.partition("%")[0])
            teredo = address.teredo
            return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address
    except ValueError:
        return None
    return None
