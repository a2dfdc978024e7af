"""Calls over shared streams: answers, limits, credit, cancellation and what a hostile end can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import pytest
import trio
from trio.testing import MockClock

from owm.net import Call, Calls, Link, MemoryHub, MemoryNetwork, Rate, Stream
from owm.net._core_calls import WINDOW, Kind, Message, encode
from owm.net._core_frames import encode_varint
from owm.net.errors import (
    FrameTooLarge,
    NotConnected,
    ProtocolNotSupported,
    RemoteError,
    RequestTimeout,
    StreamReset,
)
from tests.net.conformance import connect, eventually, identity

PROTOCOL = "/owm/test/calls/1"
LATENCY = 0.05


@dataclass
class Pair:
    hub: MemoryHub
    a: MemoryNetwork
    b: MemoryNetwork
    client: Calls
    server: Calls


@asynccontextmanager
async def pair(
    link: Link = Link(latency=LATENCY), client_rate: Rate | None = None, **options: object
) -> AsyncIterator[Pair]:
    hub = MemoryHub(Random(1), link)
    a, b = hub.network(identity(1)), hub.network(identity(2))
    client = Calls(a, PROTOCOL, rate=client_rate, **{k: v for k, v in options.items() if k != "rate"})  # type: ignore[arg-type]
    server = Calls(b, PROTOCOL, **options)  # type: ignore[arg-type]
    async with a.running(), b.running(), client.running(), server.running():
        await connect(a, b)
        yield Pair(hub, a, b, client, server)


async def echo(call: Call) -> None:
    await call.reply(call.request)


async def test_a_request_is_answered_in_one_round_trip_once_the_stream_is_open(autojump_clock: MockClock) -> None:
    async with pair() as p:
        p.server.serve(echo)
        assert await p.client.request(p.b.peer_id, b"first") == b"first"
        began = trio.current_time()
        assert await p.client.request(p.b.peer_id, b"second") == b"second"
        assert trio.current_time() - began == pytest.approx(2 * LATENCY)
        assert p.a.statistics().streams == 1


async def test_many_calls_at_once_share_one_stream_and_keep_their_answers_apart(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def slowly(call: Call) -> None:
            await trio.sleep(Random(call.request).random())
            await call.reply(call.request)

        p.server.serve(slowly)
        answers: dict[bytes, bytes] = {}

        async def ask(payload: bytes) -> None:
            answers[payload] = await p.client.request(p.b.peer_id, payload, timeout=100)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, str(number).encode())
        assert len(answers) == 200 and all(payload == answer for payload, answer in answers.items())
        assert p.a.statistics().streams == 1


async def test_replies_stream_in_order_and_end_when_the_handler_returns(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def count(call: Call) -> None:
            for number in range(int(call.request)):
                await call.reply(str(number).encode())

        p.server.serve(count)
        async with p.client.stream(p.b.peer_id, b"5000") as incoming:
            received = [frame async for frame in incoming]
            assert await incoming.receive() is None
        assert received == [str(number).encode() for number in range(5000)]


async def test_messages_of_the_client_reach_the_same_handler(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def add(call: Call) -> None:
            total = int(call.request)
            while (message := await call.receive()) is not None:
                total += int(message)
                await call.reply(str(total).encode())

        p.server.serve(add)
        async with p.client.stream(p.b.peer_id, b"1") as incoming:
            for expected in (b"3", b"5", b"7"):
                await incoming.send(b"2")
                assert await incoming.receive() == expected
            await incoming.finish()
            await incoming.finish()
            assert await incoming.receive() is None
            with pytest.raises(StreamReset):
                await incoming.send(b"too late")


async def test_leaving_the_block_cancels_the_handler_within_one_round_trip(autojump_clock: MockClock) -> None:
    async with pair() as p:
        stopped: list[float] = []
        calls: list[Call] = []

        async def endless(call: Call) -> None:
            calls.append(call)
            try:
                await call.reply(b"begun")
                await trio.sleep_forever()
            finally:
                stopped.append(trio.current_time())

        p.server.serve(endless)
        async with p.client.stream(p.b.peer_id, b"") as incoming:
            assert await incoming.receive() == b"begun"
            assert not calls[0].cancelled
        left = trio.current_time()
        await eventually(lambda: bool(stopped))
        assert stopped[0] - left <= 2 * LATENCY
        assert calls[0].cancelled
        assert p.a.statistics().streams == 1, "the shared stream outlives its calls"


async def test_a_handler_that_is_cut_off_by_disconnection_is_cancelled(autojump_clock: MockClock) -> None:
    async with pair() as p:
        stopped = trio.Event()

        async def endless(call: Call) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.set()

        p.server.serve(endless)
        with pytest.raises(StreamReset):
            async with p.client.stream(p.b.peer_id, b"") as incoming:
                await trio.sleep(1)
                await p.b.disconnect(p.a.peer_id)
                await incoming.receive()
        with trio.fail_after(1):
            await stopped.wait()


async def test_a_slow_reader_holds_up_its_own_call_only(autojump_clock: MockClock) -> None:
    async with pair() as p:
        sent = 0

        async def flood(call: Call) -> None:
            nonlocal sent
            if call.request == b"small":
                await call.reply(b"answer")
                return
            while True:
                await call.reply(bytes(1000))
                sent += 1

        p.server.serve(flood)
        async with p.client.stream(p.b.peer_id, b"flood") as incoming:
            await trio.sleep(10)
            assert WINDOW // 2 <= sent * 1000 <= WINDOW + 1000, "credit bounds what waits unread"
            began = trio.current_time()
            assert await p.client.request(p.b.peer_id, b"small") == b"answer"
            assert trio.current_time() - began < 3 * LATENCY
            for _ in range(500):
                assert await incoming.receive() == bytes(1000)


async def test_a_message_larger_than_the_window_still_passes(autojump_clock: MockClock) -> None:
    async with pair(max_request=1 << 20, max_response=1 << 20) as p:
        p.server.serve(echo)
        payload = Random(1).randbytes(1 << 20)
        assert await p.client.request(p.b.peer_id, payload, timeout=60) == payload
        with pytest.raises(ValueError, match="allowed"):
            await p.client.request(p.b.peer_id, payload + b"x")


async def test_a_bulk_call_has_a_stream_of_its_own_that_goes_with_it(autojump_clock: MockClock) -> None:
    async with pair() as p:
        p.server.serve(echo)
        await p.client.request(p.b.peer_id, b"open the shared one")
        async with p.client.stream(p.b.peer_id, b"bulk", bulk=True) as incoming:
            assert p.a.statistics().streams == 2
            assert [frame async for frame in incoming] == [b"bulk"]
        await eventually(lambda: p.a.statistics().streams == p.b.statistics().streams == 1)


async def test_an_answer_that_does_not_come_is_a_timeout_and_the_handler_is_stopped(autojump_clock: MockClock) -> None:
    async with pair() as p:
        stopped: list[float] = []

        async def never(call: Call) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.append(trio.current_time())

        p.server.serve(never)
        began = trio.current_time()
        with pytest.raises(RequestTimeout, match="within 3 s"):
            await p.client.request(p.b.peer_id, b"", timeout=3)
        assert trio.current_time() - began == pytest.approx(3)
        await eventually(lambda: bool(stopped))
        assert stopped[0] - began <= 3 + 2 * LATENCY


async def test_a_partitioned_client_does_not_keep_a_handler_beyond_its_deadline(autojump_clock: MockClock) -> None:
    async with pair() as p:
        stopped: list[float] = []

        async def never(call: Call) -> None:
            try:
                await trio.sleep_forever()
            finally:
                stopped.append(trio.current_time())

        p.server.serve(never)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(RequestTimeout):
                    await p.client.request(p.b.peer_id, b"", timeout=5)

            nursery.start_soon(ask)
            await trio.sleep(1)
            began = trio.current_time()
            p.hub.partition({p.a.peer_id}, {p.b.peer_id})
            await trio.sleep(5)
        assert stopped and stopped[0] - began < 5


async def test_what_a_handler_says_reaches_the_caller_and_its_bugs_do_not(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def fail(call: Call) -> None:
            if call.request == b"said":
                raise RemoteError("no such blob")
            if call.request == b"bug":
                raise RuntimeError("a secret in a traceback")

        p.server.serve(fail)
        with pytest.raises(RemoteError, match="no such blob"):
            await p.client.request(p.b.peer_id, b"said")
        with pytest.raises(RemoteError) as caught:
            await p.client.request(p.b.peer_id, b"bug")
        assert "secret" not in str(caught.value)
        with pytest.raises(RemoteError, match="without an answer"):
            await p.client.request(p.b.peer_id, b"silence")
        assert p.a.statistics().streams == 1


async def test_replies_that_came_before_a_failure_are_read_first(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def half(call: Call) -> None:
            await call.reply(b"first")
            raise RemoteError("then no more")

        p.server.serve(half)
        received = []
        with pytest.raises(RemoteError, match="no more"):
            async with p.client.stream(p.b.peer_id, b"") as incoming:
                await trio.sleep(1)
                async for frame in incoming:
                    received.append(frame)
        assert received == [b"first"]


async def test_the_stream_is_opened_again_after_it_broke(autojump_clock: MockClock) -> None:
    async with pair() as p:
        p.server.serve(echo)
        assert await p.client.request(p.b.peer_id, b"1") == b"1"
        await p.a.disconnect(p.b.peer_id)
        with pytest.raises(NotConnected):
            await p.client.request(p.b.peer_id, b"2")
        await eventually(lambda: not p.b.is_connected(p.a.peer_id))
        await connect(p.a, p.b)
        assert await p.client.request(p.b.peer_id, b"3") == b"3"


async def test_a_peer_that_does_not_speak_the_protocol_is_an_error(autojump_clock: MockClock) -> None:
    async with pair() as p:
        with pytest.raises(ProtocolNotSupported):
            await p.client.request(p.b.peer_id, b"")


async def test_an_answer_larger_than_asked_for_is_refused_and_the_others_go_on(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def large(call: Call) -> None:
            await call.reply(bytes(int(call.request)))

        p.server.serve(large)
        with pytest.raises(FrameTooLarge):
            await p.client.request(p.b.peer_id, b"1001", max_response=1000)
        assert len(await p.client.request(p.b.peer_id, b"1000", max_response=1000)) == 1000
        assert p.a.statistics().penalties == {}


async def test_who_asks_too_often_is_told_so_and_who_keeps_to_the_rate_is_not(autojump_clock: MockClock) -> None:
    async with pair(rate=Rate(1.0, 5.0)) as p:
        p.server.serve(echo)
        served = refused = 0
        for _ in range(20):
            try:
                await p.client.request(p.b.peer_id, b"x")
                served += 1
            except RemoteError as error:
                assert "ask less often" in str(error)
                refused += 1
        assert 5 <= served <= 8 and served + refused == 20
    async with pair(rate=Rate(1.0, 5.0), client_rate=Rate(0.9, 4.0)) as p:
        p.server.serve(echo)
        for _ in range(20):
            assert await p.client.request(p.b.peer_id, b"x", timeout=60) == b"x"


async def test_more_calls_than_allowed_wait_at_the_client(autojump_clock: MockClock) -> None:
    async with pair(max_calls=4) as p:
        running = most = 0

        async def work(call: Call) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await trio.sleep(1)
            running -= 1
            await call.reply(b"done")

        p.server.serve(work)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(lambda: p.client.request(p.b.peer_id, b"", timeout=60))
        assert most == 4


def request(call: int, payload: bytes = b"") -> bytes:
    return encode(Message(Kind.REQUEST, call, payload))


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(encode_varint(1 << 40), id="a frame of a terabyte", marks=pytest.mark.attack("T1")),
        pytest.param(b"\xff" * 20, id="no varint"),
        pytest.param(b"\x02\x09\x00", id="an unknown kind"),
        pytest.param(request(5) + request(5), id="a call id used twice"),
        pytest.param(request(5) + encode(Message(Kind.CREDIT, 5, number=1 << 30)), id="credit never used"),
        pytest.param(encode(Message(Kind.MESSAGE, 7)), id="a message of no call"),
        pytest.param(encode(Message(Kind.FAIL, 0)), id="a failure from the client"),
        pytest.param(
            request(0, b"hold") + encode(Message(Kind.MESSAGE, 0, bytes(60_000))) * 3, id="messages beyond the credit"
        ),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_penalised_and_cut_off(
    garbage: bytes, autojump_clock: MockClock
) -> None:
    async with pair() as p:
        running = 0

        async def hold(call: Call) -> None:
            nonlocal running
            running += 1
            try:
                await trio.sleep_forever()
            finally:
                running -= 1

        p.server.serve(hold)
        stream = await p.a.open_stream(p.b.peer_id, PROTOCOL)
        await stream.send(garbage)
        with pytest.raises(StreamReset), trio.fail_after(5):
            while await stream.receive():
                pass
            raise AssertionError("the stream ended politely")
        assert p.b.penalties.score(p.a.peer_id, trio.current_time()) < -9
        assert running == 0
        assert p.b.statistics().streams == 0


async def test_a_server_that_breaks_the_protocol_is_penalised_and_its_calls_fail(autojump_clock: MockClock) -> None:
    async with pair() as p:

        async def hostile(stream: Stream) -> None:
            await stream.receive()
            await stream.send(encode_varint(1 << 40))
            await trio.sleep_forever()

        p.b.handle(PROTOCOL, hostile)
        with pytest.raises(FrameTooLarge):
            await p.client.request(p.b.peer_id, b"x")
        await eventually(lambda: p.a.penalties.score(p.b.peer_id, trio.current_time()) < -9)


async def test_a_client_that_floods_and_never_reads_is_served_in_bounded_memory(autojump_clock: MockClock) -> None:
    async with pair(Link(latency=0.001), max_calls=16) as p:
        most = live = 0

        async def reply(call: Call) -> None:
            nonlocal most, live
            live += 1
            most = max(most, live)
            try:
                await call.reply(bytes(60_000))
            finally:
                live -= 1

        p.server.serve(reply)
        stream = await p.a.open_stream(p.b.peer_id, PROTOCOL)
        with trio.move_on_after(30):
            for number in range(200_000):
                await stream.send(request(number))
        assert most <= 16
        received = p.b.statistics().bytes_out
        assert received < 2_000_000, "replies pile up nowhere: the flood stalls itself"


async def test_a_frame_that_drips_in_byte_by_byte_is_cut_off(autojump_clock: MockClock) -> None:
    async with pair() as p:
        p.server.serve(echo)
        stream = await p.a.open_stream(p.b.peer_id, PROTOCOL)
        began = trio.current_time()
        with pytest.raises(StreamReset):
            for byte in encode_varint(100_000) + bytes(100_000):
                await stream.send(bytes((byte,)))
                await trio.sleep(2)
        assert trio.current_time() - began < 130
        assert p.b.penalties.score(p.a.peer_id, trio.current_time()) < -9


async def test_a_client_may_be_silent_between_requests_for_a_day(autojump_clock: MockClock) -> None:
    async with pair() as p:
        p.server.serve(echo)
        for _ in range(3):
            assert await p.client.request(p.b.peer_id, b"x") == b"x"
            await trio.sleep(86_400)
        assert p.a.statistics().streams == 1
