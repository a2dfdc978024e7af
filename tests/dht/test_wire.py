"""The kad-dht codec and multiaddrs, against vectors and against themselves."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.dht._core_types import Contact, Message, MessageType
from owm.dht._core_wire import WireError, decode_message, encode_message
from owm.identity import PeerId
from owm.net._core_multiaddr import decode_multiaddr, encode_multiaddr

PEER = PeerId.parse("QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC")
onion = base64.b32encode(bytes(range(35))).decode().lower()

addresses = st.one_of(
    st.builds("/ip4/{}/tcp/{}".format, st.ip_addresses(v=4), st.integers(0, 65535)),
    st.builds("/ip6/{}/udp/{}".format, st.ip_addresses(v=6), st.integers(0, 65535)),
    st.builds("/dns4/{}/tcp/{}".format, st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True), st.integers(1, 9)),
    st.builds(f"/onion3/{onion}:{{}}".format, st.integers(1, 65535)),
    st.just(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit"),
)
contacts = st.builds(
    Contact, st.binary(min_size=3, max_size=64), st.lists(addresses, max_size=4, unique=True).map(tuple)
)
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    st.binary(max_size=80),
    st.none() | st.binary(max_size=200),
    st.lists(contacts, max_size=5).map(tuple),
    st.lists(contacts, max_size=5).map(tuple),
    st.none() | contacts,
    st.binary(max_size=8),
)


@given(messages)
def test_what_is_written_is_read_back(message):
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(WireError):
        assert isinstance(decode_message(data), Message)


@given(messages, st.data())
def test_a_message_cut_anywhere_is_read_or_refused(message, data):
    raw = encode_message(message)
    with contextlib.suppress(WireError):
        assert isinstance(decode_message(raw[: data.draw(st.integers(0, len(raw)))]), Message)


@given(messages, st.integers(102, 2000), st.binary(max_size=50))
def test_unknown_fields_are_skipped(message, number, junk):
    tag = number << 3 | 2
    field = bytes((tag & 0x7F | 0x80, tag >> 7)) + bytes((len(junk),)) + junk
    assert decode_message(field + encode_message(message) + field) == message


@given(addresses)
def test_an_address_comes_back_the_same(text):
    assert decode_multiaddr(encode_multiaddr(text)) == text


@given(st.binary(max_size=60))
def test_any_bytes_are_an_address_that_comes_back_or_refused(data):
    try:
        text = decode_multiaddr(data)
    except ValueError:
        return
    assert decode_multiaddr(encode_multiaddr(text)) == text


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("/ip4/127.0.0.1/udp/1234", "047f000001910204d2"),
        ("/ip4/127.0.0.1/tcp/4321", "047f0000010610e1"),
        (f"/ip4/127.0.0.1/tcp/4321/p2p/{PEER}", "047f0000010610e1a503221220" + PEER[2:].hex()),
        ("/ip6/2001:8a0:7ac5:4201:3ac9:86ff:fe31:7095/tcp/8000", "29200108a07ac542013ac986fffe317095061f40"),
        ("/dns4/example.com/tcp/1", "360b6578616d706c652e636f6d060001"),
        ("/p2p-circuit", "a202"),
    ],
)
def test_addresses_of_the_multiaddr_suite(text, raw):
    """Vectors of go-multiaddr's own tests."""
    assert encode_multiaddr(text).hex() == raw
    assert decode_multiaddr(bytes.fromhex(raw)) == text


@pytest.mark.parametrize("text", ["", "ip4/1.2.3.4", "/ip4/1.2.3", "/tcp/65536", "/tcp/01", "/x/1", "/onion3/a:1"])
def test_bad_addresses_are_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        encode_multiaddr(text)


def test_messages_match_protobuf_of_other_libraries():
    """The bytes that protobuf's own encoder makes of the same message (fields 1, 2, 8, 9)."""
    message = Message(MessageType.FIND_NODE, b"key", closer=(Contact(b"abc", ("/ip4/127.0.0.1/tcp/4321",)),))
    assert encode_message(message).hex() == "080412036b6579420f0a036162631208047f0000010610e1"
