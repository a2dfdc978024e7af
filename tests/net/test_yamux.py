"""Yamux: bytes arrive whole and in order, windows hold, small messages go first, and breaches end the connection."""

from __future__ import annotations

import struct
from collections import defaultdict
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owm.net._core_yamux import (
    CONTROL_QUEUE,
    FRAME,
    INITIAL_WINDOW,
    MAX_WINDOW,
    STREAM_QUEUE,
    DataReceived,
    Event,
    Finished,
    GoneAway,
    Opened,
    PingReceived,
    Pong,
    Refused,
    StreamIdsExhausted,
    StreamWasReset,
    Yamux,
    YamuxError,
)

HEADER = struct.Struct(">BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + body


def move(source: Yamux, target: Yamux) -> list[Event]:
    events: list[Event] = []
    while chunk := source.take():
        events += target.receive(chunk)
    return events


def pair(max_inbound: int = 256) -> tuple[Yamux, Yamux]:
    return Yamux(initiator=True, max_inbound=max_inbound), Yamux(initiator=False, max_inbound=max_inbound)


operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "send", "send", "send", "finish", "reset", "read", "move", "ping"]),
        st.booleans(),
        st.integers(0, 5),
        st.integers(1, 400_000),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.integers(1, 70_000))
def test_what_is_sent_arrives_whole_and_in_order_however_it_is_cut(
    script: list[tuple[str, bool, int, int]], cut: int
) -> None:
    ends = dict(zip((True, False), pair(), strict=True))
    sent: dict[tuple[bool, int], bytearray] = defaultdict(bytearray)
    got: dict[tuple[bool, int], bytearray] = defaultdict(bytearray)
    unread: dict[tuple[bool, int], int] = defaultdict(int)
    finished: set[tuple[bool, int]] = set()
    aborted: set[int] = set()
    known: list[int] = []

    def deliver(side: bool, wire: bytes) -> None:
        for at in range(0, len(wire), cut):
            for event in ends[not side].receive(wire[at : at + cut]):
                match event:
                    case DataReceived(stream_id, data):
                        assert (side, stream_id) not in finished
                        got[side, stream_id] += data
                        unread[side, stream_id] += len(data)
                    case Finished(stream_id):
                        finished.add((side, stream_id))

    def exchange() -> None:
        while any(mux.has_output for mux in ends.values()):
            for side, mux in ends.items():
                deliver(side, mux.take())

    for action, side, number, size in script:
        mux = ends[side]
        stream_id = known[number % len(known)] if known else 0
        if action == "open":
            known.append(mux.open(bulk=bool(size % 2)))
        elif action == "send" and stream_id in mux:
            data = bytes((size + len(sent[side, stream_id])) % 256 for _ in range(1)) * size
            with suppress(KeyError):  # finished for writing
                sent[side, stream_id] += data[: mux.send(stream_id, data)]
        elif action == "finish":
            mux.finish(stream_id)
        elif action == "reset" and stream_id in mux:
            mux.reset(stream_id)
            aborted.add(stream_id)
        elif action == "read":
            amount, unread[not side, stream_id] = unread[not side, stream_id], 0
            mux.consume(stream_id, amount, now=0.0)
        elif action == "move":
            deliver(side, mux.take(size))
        elif action == "ping":
            mux.ping(size)
    for _ in range(12):  # everybody reads on: all that was queued must come through
        exchange()
        for (sender, stream_id), amount in list(unread.items()):
            unread[sender, stream_id] = 0
            ends[not sender].consume(stream_id, amount, now=0.0)
    for key, data in sent.items():
        if key[1] not in aborted:
            assert got[key] == data
        else:
            assert data.startswith(bytes(got[key]))
    for mux in ends.values():
        assert mux.queued == 0 or aborted


def test_the_first_bytes_open_the_stream_and_both_sides_forget_it_when_both_have_finished() -> None:
    a, b = pair()
    stream = a.open()
    a.send(stream, b"hello")
    assert move(a, b) == [Opened(stream), DataReceived(stream, b"hello")]
    a.finish(stream)
    assert move(a, b) == [Finished(stream)]
    b.send(stream, b"bye")
    b.finish(stream)
    assert move(b, a) == [DataReceived(stream, b"bye"), Finished(stream)]
    assert len(a) == len(b) == 0


def test_the_end_comes_after_all_data_that_was_queued_before_it() -> None:
    a, b = pair()
    stream = a.open(bulk=True)
    assert a.send(stream, bytes(200_000)) == 200_000
    a.finish(stream)
    *data, last = move(a, b)[1:]
    assert sum(len(event.data) for event in data if isinstance(event, DataReceived)) == 200_000
    assert last == Finished(stream)


def test_a_sender_stops_at_the_window_and_goes_on_when_the_reader_has_read() -> None:
    a, b = pair()
    stream = a.open()
    taken = 0
    while size := a.send(stream, bytes(STREAM_QUEUE)):
        taken += size
        move(a, b)
    assert taken == INITIAL_WINDOW + STREAM_QUEUE
    assert b.consume(stream, INITIAL_WINDOW, now=0.0)
    move(b, a)
    assert a.has_output
    move(a, b)
    assert stream in a.writable


def test_a_window_grows_only_where_the_round_trip_is_long() -> None:
    for round_trip, grows in ((0.001, False), (0.2, True)):
        a, b = pair()
        b.round_trip = round_trip
        stream = a.open(bulk=True)
        largest = 0
        for step in range(20):
            received, going = 0, True
            while going:
                going = a.send(stream, bytes(STREAM_QUEUE)) > 0
                received += sum(len(event.data) for event in move(a, b) if isinstance(event, DataReceived))
            largest = max(largest, received)
            b.consume(stream, received, now=step * round_trip)
            move(b, a)
        assert (largest > INITIAL_WINDOW) is grows
        assert largest <= MAX_WINDOW


def test_small_messages_go_before_what_is_left_of_bulk() -> None:
    a, _ = pair()
    bulk, small = a.open(bulk=True), a.open()
    a.send(bulk, bytes(STREAM_QUEUE))
    a.send(small, b"urgent")
    first = a.take()
    assert first.index(b"urgent") == HEADER.size
    sizes = []
    at = 0
    wire = first + a.take()
    while at < len(wire):
        _, _, _, _, length = HEADER.unpack_from(wire, at)
        sizes.append(length)
        at += HEADER.size + length
    assert max(sizes) <= FRAME


def test_two_bulk_streams_share_the_connection_evenly() -> None:
    a, b = pair()
    streams = [a.open(bulk=True), a.open(bulk=True)]
    for stream in streams:
        a.send(stream, bytes(STREAM_QUEUE))
    counts = dict.fromkeys(streams, 0)
    for _ in range(3):
        for event in b.receive(a.take()):
            if isinstance(event, DataReceived):
                counts[event.stream_id] += len(event.data)
    assert abs(counts[streams[0]] - counts[streams[1]]) <= FRAME


def test_the_queue_of_a_stream_and_of_the_connection_are_bounded() -> None:
    a, _ = pair()
    assert a.send(a.open(), bytes(STREAM_QUEUE + 1)) == STREAM_QUEUE
    while a.send(a.open(), bytes(STREAM_QUEUE)):
        pass
    assert a.queued == 4 * 1024 * 1024


def test_a_reset_drops_what_is_queued_and_tells_the_peer_once() -> None:
    a, b = pair()
    stream = a.open()
    a.send(stream, b"x")
    move(a, b)
    a.send(stream, bytes(100_000))
    a.reset(stream)
    a.reset(stream)
    assert a.queued == 0
    assert move(a, b) == [StreamWasReset(stream)]
    assert stream not in a and stream not in b


def test_pings_are_answered_and_going_away_is_told() -> None:
    a, b = pair()
    a.ping(7)
    assert move(a, b) == [PingReceived(7)]
    assert move(b, a) == [Pong(7)]
    b.go_away(2)
    assert move(b, a) == [GoneAway(2)]


def test_streams_beyond_the_cap_are_refused_and_leave_room_when_others_end() -> None:
    a, b = pair(max_inbound=2)
    streams = [a.open() for _ in range(3)]
    for stream in streams:
        a.send(stream, b"x")
    events = move(a, b)
    assert [event for event in events if isinstance(event, Refused)] == [Refused(streams[2])]
    assert move(b, a)[-1] == StreamWasReset(streams[2])
    a.reset(streams[0])
    move(a, b)
    a.send(a.open(), b"y")
    assert isinstance(move(a, b)[0], Opened)


def test_a_peer_that_overruns_its_window_is_cut_before_anything_is_kept() -> None:
    _, b = pair()
    b.receive(frame(DATA, SYN, 1, INITIAL_WINDOW, bytes(INITIAL_WINDOW)))
    with pytest.raises(YamuxError, match="overran"):
        b.receive(frame(DATA, 0, 1, 1))


@pytest.mark.parametrize(
    "wire",
    [
        frame(DATA, SYN, 1, 0xFFFFFFFF),
        frame(DATA, 0, 99, MAX_WINDOW + 1),
        frame(DATA, SYN, 2, 0),
        frame(WINDOW, SYN, 1, 0) * 2,
        frame(WINDOW, SYN, 0, 0),
        frame(WINDOW, SYN, 1, 0xFFFFFFFF),
        frame(9, 0, 0, 0),
        b"\x01" + frame(PING, SYN, 0, 0)[1:],
        frame(DATA, SYN | FIN, 1, 0) + frame(DATA, 0, 1, 1, b"x"),
        frame(PING, SYN, 0, 1) * (CONTROL_QUEUE + 1),
    ],
    ids=[
        "a frame of 4 GB",
        "a huge frame for no stream",
        "a stream id of ours",
        "the same stream twice",
        "stream zero",
        "an endless window",
        "an unknown type",
        "an unknown version",
        "data after the end",
        "pings whose answers are not read",
    ],
)
def test_breaches_end_the_connection(wire: bytes) -> None:
    with pytest.raises(YamuxError):
        Yamux(initiator=False).receive(wire)


def test_frames_that_cross_our_reset_are_ignored() -> None:
    a, b = pair()
    stream = a.open()
    a.send(stream, b"x")
    move(a, b)
    a.send(stream, b"late")
    b.reset(stream)
    assert move(a, b) == []


def test_stream_ids_run_out_instead_of_wrapping() -> None:
    mux = Yamux(initiator=True)
    mux._next_id = 0xFFFFFFFF
    assert mux.open() == 0xFFFFFFFF
    with pytest.raises(StreamIdsExhausted):
        mux.open()


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_otherwise_than_by_ending_the_connection(data: bytes) -> None:
    with suppress(YamuxError):
        Yamux(initiator=False).receive(data)
