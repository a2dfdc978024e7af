"""Multiaddrs between text and bytes, for the protocols that peers here are dialled by.

Format: https://github.com/multiformats/multiaddr; codes: its protocols.csv. Strict: what would not come back the same
is refused. Addresses of protocols not listed here (QUIC, WebRTC) are unknown, and callers leave them out.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import base58

__all__ = ["MAX_MULTIADDR", "decode_multiaddr", "encode_multiaddr"]

MAX_MULTIADDR: Final = 512  #: bytes
_MAX_NAME: Final = 253

_CODES: Final = {
    "ip4": 4,
    "tcp": 6,
    "ip6": 41,
    "ip6zone": 42,
    "dns": 53,
    "dns4": 54,
    "dns6": 55,
    "dnsaddr": 56,
    "udp": 273,
    "p2p-circuit": 290,
    "p2p": 421,
    "onion3": 445,
}
_NAMES: Final = {code: name for name, code in _CODES.items()}
_SIZES: Final = {"ip4": 4, "tcp": 2, "ip6": 16, "udp": 2, "p2p-circuit": 0, "onion3": 37}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift <= 21:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return value, at
        shift += 7
    raise ValueError("a bad number in a multiaddr")


def _port(text: str) -> bytes:
    if not (text.isascii() and text.isdigit()) or str(int(text[:6])) != text or int(text) > 65535:
        raise ValueError(f"not a port: {text[:16]!r}")
    return int(text).to_bytes(2, "big")


def _name(data: bytes) -> str:
    text = data.decode("ascii")
    if not 0 < len(text) <= _MAX_NAME or "/" in text or not text.isprintable() or " " in text:
        raise ValueError("not a name that a multiaddr can hold")
    return text


def _onion_bytes(text: str) -> bytes:
    host, _, port = text.partition(":")
    if len(host) != 56 or host != host.lower():
        raise ValueError("an onion3 address has 56 characters")
    if port == "0":
        raise ValueError("an onion3 address has a port")
    return base64.b32decode(host.upper()) + _port(port)


def _value_bytes(name: str, text: str) -> bytes:
    if name == "ip4":
        return IPv4Address(text).packed
    if name == "ip6":
        return IPv6Address(text).packed
    if name in ("tcp", "udp"):
        return _port(text)
    if name == "onion3":
        return _onion_bytes(text)
    raw = base58.b58decode(text) if name == "p2p" else text.encode("ascii")
    if name == "p2p":
        if not 2 < len(raw) <= 64:
            raise ValueError("not a peer id")
    else:
        _name(raw)
    return _varint(len(raw)) + raw


def _value_text(name: str, data: bytes) -> str:
    if name == "ip4":
        return str(IPv4Address(data))
    if name == "ip6":
        return str(IPv6Address(data))
    if name in ("tcp", "udp"):
        return str(int.from_bytes(data, "big"))
    if name == "onion3":
        port = int.from_bytes(data[35:], "big")
        if not port:
            raise ValueError("an onion3 address has a port")
        return f"{base64.b32encode(data[:35]).decode().lower()}:{port}"
    if name == "p2p":
        if not 2 < len(data) <= 64:
            raise ValueError("not a peer id")
        return str(base58.b58encode(data), "ascii")
    return _name(data)


@lru_cache(maxsize=8192)
def encode_multiaddr(text: str) -> bytes:
    """The bytes of ``/ip4/127.0.0.1/tcp/9000``; raises ValueError for what is not a known multiaddr."""
    parts = text.split("/")
    if len(text) > 2 * MAX_MULTIADDR or len(parts) < 2 or parts[0]:
        raise ValueError("a multiaddr starts with a slash")
    out = bytearray()
    at = 1
    while at < len(parts):
        name = parts[at]
        code = _CODES.get(name)
        if code is None:
            raise ValueError(f"unknown multiaddr protocol {name[:32]!r}")
        out += _varint(code)
        at += 1
        if name == "p2p-circuit":
            continue
        if at >= len(parts):
            raise ValueError(f"the multiaddr ends after {name}")
        try:
            out += _value_bytes(name, parts[at])
        except (binascii.Error, UnicodeError) as error:
            raise ValueError(f"a bad {name} in a multiaddr") from error
        at += 1
    if len(out) > MAX_MULTIADDR:
        raise ValueError("the multiaddr is too long")
    return bytes(out)


@lru_cache(maxsize=8192)
def decode_multiaddr(data: bytes) -> str:
    """The text of a multiaddr's bytes; raises ValueError for unknown protocols and for malformed ones."""
    if not 0 < len(data) <= MAX_MULTIADDR:
        raise ValueError("a multiaddr of a bad length")
    parts: list[str] = []
    at = 0
    while at < len(data):
        code, at = _read_varint(data, at)
        name = _NAMES.get(code)
        if name is None:
            raise ValueError(f"unknown multiaddr protocol {code}")
        size = _SIZES.get(name)
        if size is None:
            size, at = _read_varint(data, at)
        if at + size > len(data):
            raise ValueError("the multiaddr is cut short")
        parts.append(name)
        if size or name != "p2p-circuit":
            try:
                parts.append(_value_text(name, data[at : at + size]))
            except UnicodeError as error:
                raise ValueError(f"a bad {name} in a multiaddr") from error
        at += size
    return "/" + "/".join(parts)
