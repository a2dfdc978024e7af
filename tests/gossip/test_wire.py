"""The RPC codec: what is written is read, and what is nonsense is refused."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.gossip._core_wire import Message, Prune, Rpc, RpcDecoder
from owm.net.errors import ProtocolViolation

topics = st.text(max_size=20)
ids = st.binary(max_size=40)
optional = st.none() | st.binary(max_size=70)
messages = st.builds(
    Message,
    topic=topics,
    data=st.binary(max_size=300),
    sender=optional,
    seqno=optional,
    signature=optional,
    key=optional,
)
prunes = st.builds(
    Prune,
    topic=topics,
    backoff=st.integers(0, 2**64 - 1),
    peers=st.lists(st.tuples(ids, ids), max_size=3).map(tuple),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.tuples(topics, st.booleans()), max_size=5).map(tuple),
    publish=st.lists(messages, max_size=4).map(tuple),
    ihave=st.lists(st.tuples(topics, st.lists(ids, max_size=4).map(tuple)), max_size=3).map(tuple),
    iwant=st.lists(ids, max_size=5).map(tuple),
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(prunes, max_size=3).map(tuple),
    idontwant=st.lists(ids, max_size=5).map(tuple),
)


@given(rpcs)
def test_every_rpc_survives_the_wire(rpc: Rpc) -> None:
    assert RpcDecoder().decode(rpc.encode()) == rpc


@given(st.lists(rpcs, max_size=4))
def test_what_was_read_before_changes_nothing_of_what_is_read_next(several: list[Rpc]) -> None:
    decoder = RpcDecoder()
    for rpc in several + several:
        assert decoder.decode(rpc.encode()) == rpc


def test_copies_of_a_message_are_one_object_and_only_whole_copies_are() -> None:
    decoder = RpcDecoder()
    first, other = Message("news", b"one", b"me", b"1"), Message("news", b"one", b"me", b"2")
    found = decoder.decode(Rpc(publish=(first, other)).encode()).publish
    again = decoder.decode(Rpc(publish=(other, first)).encode()).publish
    assert found[0] is again[1] and found[1] is again[0] and found[0] is not found[1]


def test_messages_kept_to_recognise_copies_are_bounded() -> None:
    decoder = RpcDecoder()

    def read(number: int, size: int) -> Message:
        return decoder.decode(
            Rpc(publish=(Message("news", number.to_bytes(4, "big") * (size // 4)),)).encode()
        ).publish[0]

    first = read(0, 1000)
    assert read(0, 1000) is first
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1, 3000):
        read(number, 1000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1 << 20
    assert read(0, 1000) is not first
    assert read(1, 20_000) is not read(1, 20_000), "large ones are not kept at all"


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_any_bytes_are_an_rpc_or_a_violation(data: bytes) -> None:
    try:
        RpcDecoder().decode(data)
    except ProtocolViolation:
        return


@given(rpcs, st.data())
def test_a_damaged_rpc_is_an_rpc_or_a_violation(rpc: Rpc, data: st.DataObject) -> None:
    encoded = bytearray(rpc.encode())
    if not encoded:
        return
    for _ in range(3):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        RpcDecoder().decode(bytes(encoded))
    except ProtocolViolation:
        return


@given(rpcs)
def test_unknown_fields_are_skipped(rpc: Rpc) -> None:
    unknown = b"\x7a\x03abc" + b"\xf8\x01\x05" + b"\xfd\x01\x00\x00\x00\x00"
    assert RpcDecoder().decode(unknown + rpc.encode() + unknown) == rpc


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x12\xff\xff\xff\xff\x0f", "cut short"),
        (b"\x10\x01", "wire type"),
        (b"\x0a", "cut short"),
        (b"\x00\x01", "field number 0"),
        (b"\x12" + b"\xff" * 11, "64 bits"),
        (b"\x7b", "wire type 3"),
        (b"\x12\x04\x22\x02\xff\xfe", "UTF-8"),
        (b"\x0a\x00" * 25_000, "more than 20000 items"),
    ],
)
def test_nonsense_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolViolation, match=words):
        RpcDecoder().decode(data)


def test_libp2ps_bytes_are_read() -> None:
    """An RPC as go-libp2p-pubsub writes it: a subscription, then a signed message (field numbers of its rpc.proto)."""
    data = bytes.fromhex("0a0a08011206" + b"topic1".hex())
    assert RpcDecoder().decode(data).subscriptions == (("topic1", True),)
    message = (
        b"\x0a\x02me" + b"\x12\x04data" + b"\x1a\x08" + bytes(8) + b"\x22\x06topic1" + b"\x2a\x03sig" + b"\x32\x03key"
    )
    found = RpcDecoder().decode(b"\x12" + bytes([len(message)]) + message).publish[0]
    assert (found.sender, found.data, found.topic) == (b"me", b"data", "topic1")
    assert (found.seqno, found.signature, found.key) == (bytes(8), b"sig", b"key")
