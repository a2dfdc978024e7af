"""Addresses that one operator can easily have fall into one group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.net._groups import group_of, is_local


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("/ip4/203.0.113.7/tcp/9000", "ip4:203.0"),
        ("/ip4/203.0.9.9/udp/1/quic-v1/p2p/abc", "ip4:203.0"),
        ("/ip4/127.4.0.1/tcp/1", "ip4:127.4"),
        ("/ip6/2001:db8:1::1/tcp/9000", "ip6:2001:0db8"),
        ("/ip6/::ffff:203.0.113.7/tcp/9000", "ip4:203.0"),
        ("/ip6/2002:cb00:7107::1/tcp/1", "ip4:203.0"),
        ("/onion3/" + "a" * 56 + ":9002", "onion"),
        ("/dns4/a.example.org/tcp/9000", "dns"),
        ("/ip4/203.0.113.7/tcp/1/p2p/abc/p2p-circuit", "relay"),
        ("/ip4/999.0.0.1/tcp/1", "other"),
        ("", "other"),
    ],
)
def test_the_group_of_an_address(address: str, group: str) -> None:
    assert group_of(address) == group


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=10, max_size=10))
def test_addresses_of_one_32_share_a_group(first: bytes, tail: bytes) -> None:
    first = b"\x2a" + first[1:]  # a plain global address: no IPv4 inside
    second = first[:4] + tail + first[14:]
    assert group_of(f"/ip6/{_text(first)}/tcp/1") == group_of(f"/ip6/{_text(second)}/tcp/2")


@given(st.text())
def test_no_text_crashes_it(text: str) -> None:
    assert group_of(text)
    assert is_local(text) in (True, False)


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/tcp/1", "/ip4/10.1.2.3/tcp/1", "/ip6/::1/tcp/1", "/ip6/fe80::1%2/tcp/1"]
)
def test_loopback_and_private_addresses_are_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address", ["/ip4/8.8.8.8/tcp/1", "/ip6/2a00::1/tcp/1", "/onion3/x:1", "/dns4/localhost/tcp/1"]
)
def test_others_are_not(address: str) -> None:
    assert not is_local(address)


def _text(raw: bytes) -> str:
    return ":".join(raw[i : i + 2].hex() for i in range(0, 16, 2))
