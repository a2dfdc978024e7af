"""The transport's fuzz targets on bytes that hypothesis makes, valid beginnings included."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from owm.net._core_multistream import encode
from tests.fuzz import fuzz_multistream, fuzz_noise, fuzz_yamux

headers = st.builds(
    struct.Struct(">BBHII").pack,
    st.sampled_from([0, 0, 0, 0, 1]),
    st.integers(0, 4),
    st.integers(0, 15),
    st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
)
frames = st.lists(st.one_of(headers, st.binary(max_size=64)), max_size=20).map(b"".join)
lines = st.lists(
    st.one_of(st.sampled_from(["/multistream/1.0.0", "/a/1", "/b/1", "na", "ls"]).map(encode), st.binary(max_size=20)),
    max_size=12,
).map(b"".join)
packets = st.lists(st.binary(max_size=200).map(lambda body: len(body).to_bytes(2, "big") + body), max_size=4)


@settings(max_examples=400, deadline=None)
@given(st.binary(min_size=1, max_size=1), frames)
def test_yamux(step: bytes, wire: bytes) -> None:
    fuzz_yamux.fuzz_one(step + wire)


@settings(max_examples=200, deadline=None)
@given(lines)
def test_multistream(wire: bytes) -> None:
    fuzz_multistream.fuzz_one(wire)


@settings(max_examples=150, deadline=None)
@given(packets.map(b"".join))
def test_noise(wire: bytes) -> None:
    fuzz_noise.fuzz_one(wire)
