"""Frames survive any cutting of the byte stream, and a length that is too large is refused before it is believed."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.net import FrameStream, Link, MemoryHub, Stream, pump_frames, read_frame, write_frame
from owm.net._core_calls import WINDOW, Credit, Inbox, Kind, Message, decode, encode
from owm.net._core_frames import FrameDecoder, decode_varint, encode_frame, encode_varint
from owm.net.errors import FrameTooLarge, ProtocolViolation, StreamReset
from tests.net.conformance import connect, identity


def fuzz(data: bytes) -> None:
    """Whatever comes in, the decoders return or raise a ProtocolViolation."""
    try:
        for frame in FrameDecoder(1024).feed(data):
            assert len(frame) <= 1024
            message = decode(frame)
            assert decode(FrameDecoder(2048).feed(encode(message))[0]) == message
    except ProtocolViolation:
        pass


@given(st.binary(max_size=400))
def test_no_input_breaks_the_decoders(data: bytes) -> None:
    fuzz(data)


@given(st.integers(0, 2**63 - 1))
def test_a_varint_reads_back_and_is_shortest(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded) == (value, len(encoded))
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\x00", b"\xff" * 9, b"\xff" * 20])
def test_varints_that_are_too_long_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_varint(data)


@pytest.mark.parametrize("value", [-1, 2**63])
def test_a_number_that_does_not_fit_is_a_mistake_of_ours(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_varint(value)


@given(st.lists(st.binary(max_size=300), max_size=10), st.lists(st.integers(1, 50), max_size=60))
def test_frames_come_out_whole_however_the_bytes_were_cut(frames: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(encode_frame(frame) for frame in frames)
    decoder = FrameDecoder(300)
    out: list[bytes] = []
    for cut in cuts:
        out += decoder.feed(wire[:cut])
        wire = wire[cut:]
    out += decoder.feed(wire)
    assert out == frames
    assert not decoder.is_inside_frame


@pytest.mark.attack("T1")
def test_a_length_of_gigabytes_allocates_nothing() -> None:
    tracemalloc.start()
    for size in (1025, 2**32, 2**62):
        with pytest.raises(FrameTooLarge):
            FrameDecoder(1024).feed(encode_varint(size) + b"x" * 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


kinds = st.sampled_from(Kind)


@given(kinds, st.integers(0, 2**40), st.binary(max_size=200), st.integers(0, 2**40))
def test_a_message_reads_back(kind: Kind, call: int, body: bytes, number: int) -> None:
    numbered = kind in (Kind.REQUEST, Kind.CREDIT)
    bodied = kind in (Kind.REQUEST, Kind.MESSAGE, Kind.FAIL)
    message = Message(kind, call, body if bodied else b"", number if numbered else 0)
    (frame,) = FrameDecoder(1000).feed(encode(message))
    assert decode(frame) == message


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40_000)), max_size=200))
def test_credit_never_overruns_the_inbox_and_never_runs_dry(steps: list[tuple[bool, int]]) -> None:
    credit, inbox = Credit(), Inbox()
    sent = received = 0
    for reads, size in steps:
        if reads and inbox:
            _, grant = inbox.take()
            received += 1
            if grant:
                credit.grant(grant)
        elif credit.may_send:
            credit.spend(bytes(size))
            inbox.put(bytes(size))  # would raise on an overrun
            sent += 1
    while inbox:
        _, grant = inbox.take()
        received += 1
        if grant:
            credit.grant(grant)
    assert sent == received
    assert credit.may_send


def test_a_message_beyond_the_credit_is_a_violation() -> None:
    inbox = Inbox()
    inbox.put(bytes(WINDOW))
    with pytest.raises(ProtocolViolation):
        inbox.put(b"")


def test_empty_messages_use_up_credit_too() -> None:
    credit, sent = Credit(), 0
    while credit.may_send:
        credit.spend(b"")
        sent += 1
    assert sent <= WINDOW // 32


def test_more_credit_than_was_used_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        Credit().grant(1)


async def test_single_frames_over_a_stream_take_not_a_byte_more(autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.01))
    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:

        async def answer(stream: Stream) -> None:
            first = await read_frame(stream, 100)
            assert first is not None
            frames = FrameStream(stream, 100_000)
            second = await frames.receive()
            assert second is not None
            await write_frame(stream, first + second)
            with pytest.raises(FrameTooLarge):
                await frames.receive()
            await frames.send(b"too large")

        b.handle("/frames", answer)
        await connect(a, b)
        async with await a.open_stream(b.peer_id, "/frames") as stream:
            await stream.send(encode_frame(b"one") + encode_frame(b"x" * 90_000))
            assert await read_frame(stream, 100_000) == b"one" + b"x" * 90_000
            await stream.send(encode_varint(1 << 40))
            assert await read_frame(stream, 100) == b"too large"
            assert await read_frame(stream, 100) is None


@pytest.mark.parametrize("cut", [1, 5])
async def test_a_stream_that_ends_within_a_frame_is_an_error(cut: int, autojump_clock: MockClock) -> None:
    hub = MemoryHub(Random(1))
    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:

        async def stop_short(stream: Stream) -> None:
            await stream.send((encode_varint(300) + b"abc")[:cut])

        b.handle("/frames", stop_short)
        await connect(a, b)
        for reader in (lambda s: read_frame(s, 1000), lambda s: FrameStream(s, 1000).receive()):
            stream = await a.open_stream(b.peer_id, "/frames")
            with pytest.raises(StreamReset, match="within a frame"):
                await reader(stream)


@pytest.mark.parametrize("way", ["FrameStream", "read_frame", "pump_frames"])
async def test_a_frame_that_drips_in_is_not_waited_for_but_silence_between_frames_is(
    way: str, autojump_clock: MockClock
) -> None:
    hub = MemoryHub(Random(1), Link(latency=0.001))
    got: list[bytes] = []
    blamed: list[float] = []

    async def read(stream: Stream) -> None:
        frames = FrameStream(stream, 100_000)
        try:
            if way == "pump_frames":
                await pump_frames(stream, 100_000, got.append)
            while (
                frame := await (frames.receive() if way == "FrameStream" else read_frame(stream, 100_000))
            ) is not None:
                got.append(frame)
        except ProtocolViolation:
            blamed.append(trio.current_time())

    async with hub.network(identity(1)).running() as a, hub.network(identity(2)).running() as b:
        b.handle("/frames", read)
        await connect(a, b)
        stream = await a.open_stream(b.peer_id, "/frames")
        for _ in range(3):
            await stream.send(encode_frame(b"whole"))
            await trio.sleep(3600)
        for piece in (encode_frame(bytes(80_000))[start : start + 8_000] for start in range(0, 80_003, 8_000)):
            await stream.send(piece)  # a slow link, not an attack
            await trio.sleep(2)
        began = trio.current_time()
        await stream.send(encode_frame(bytes(1000))[:2])
        with suppress(StreamReset):
            for _ in range(500):
                await stream.send(b"\0")
                await trio.sleep(2)
    assert [len(frame) for frame in got] == [5, 5, 5, 80_000]
    assert 20 <= blamed[0] - began <= 45
