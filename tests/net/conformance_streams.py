"""What the streams of every :class:`owm.net.Network` must do; each one's test module subclasses this suite too."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from random import Random

import pytest
import trio

from owm.identity import PeerId
from owm.net import Network, NetworkLimits, Rate, Stream
from owm.net.errors import NetworkError, StreamReset
from tests.net.conformance import ECHO, HOLD, LIMITS, PATIENCE, ask, connect, echo, eventually, read_all


class StreamConformance:
    """Subclasses provide :meth:`networks`."""

    def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AbstractAsyncContextManager[list[Network]]:
        """Running networks with ``identity(1)``, ``identity(2)``, ..., none connected to another."""
        raise NotImplementedError

    async def test_streams_work_both_ways_over_one_connection(self) -> None:
        async with self.networks() as (a, b):
            a.handle(ECHO, echo)
            b.handle(ECHO, echo)
            await connect(a, b)
            assert await ask(a, b, b"from a") == b"from a"
            assert await ask(b, a, b"from b") == b"from b"
            assert a.statistics().connections == 1

    async def test_a_handler_knows_who_opened_the_stream_and_for_what(self) -> None:
        async with self.networks() as (a, b):
            seen: list[tuple[PeerId, str]] = []

            async def note(stream: Stream) -> None:
                seen.append((stream.remote, stream.protocol))
                await read_all(stream)

            b.handle(ECHO, note)
            await connect(a, b)
            assert await ask(a, b, b"") == b""
            assert seen == [(a.peer_id, ECHO)]

    async def test_half_closed_streams_still_carry_the_answer(self) -> None:
        async with self.networks() as (a, b):

            async def count(stream: Stream) -> None:
                await stream.send(str(len(await read_all(stream))).encode())

            b.handle(ECHO, count)
            await connect(a, b)
            assert await ask(a, b, b"x" * 100_000) == b"100000"

    async def test_what_a_handler_sent_before_returning_arrives(self) -> None:
        async with self.networks() as (a, b):

            async def speak(stream: Stream) -> None:
                await stream.send(b"y" * 100_000)

            b.handle(ECHO, speak)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, ECHO)
            await trio.sleep(0.1)  # by now the handler has long returned, and we never finished writing
            with trio.fail_after(PATIENCE):
                assert await read_all(stream) == b"y" * 100_000
            await stream.aclose()

    async def test_a_reset_reaches_the_other_end(self) -> None:
        async with self.networks() as (a, b):
            errors: list[Exception] = []
            done = trio.Event()

            async def wait(stream: Stream) -> None:
                try:
                    await read_all(stream)
                except StreamReset as error:
                    errors.append(error)
                done.set()

            b.handle(ECHO, wait)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, ECHO)
            await stream.send(b"never finished")
            stream.reset()
            stream.reset()
            with trio.fail_after(PATIENCE):
                await done.wait()
            assert len(errors) == 1
            with pytest.raises(StreamReset):
                await stream.receive()
            with pytest.raises(StreamReset):
                await stream.send(b"more")

    async def test_a_handler_that_fails_resets_its_stream_only(self) -> None:
        async with self.networks() as (a, b):

            async def fail(stream: Stream) -> None:
                raise RuntimeError("a bug in a handler")

            b.handle(HOLD, fail)
            b.handle(ECHO, echo)
            await connect(a, b)
            with trio.fail_after(PATIENCE), pytest.raises(StreamReset):
                stream = await a.open_stream(b.peer_id, HOLD)  # the reset may overtake the answer to this
                await stream.receive()
            assert await ask(a, b, b"unharmed") == b"unharmed"

    async def test_what_comes_is_handed_to_a_sink_in_order_until_the_peer_has_finished(self) -> None:
        async with self.networks() as (a, b):
            received = bytearray()
            ended = trio.Event()

            async def take(stream: Stream) -> None:
                received.extend(await stream.receive(1))
                await stream.pump(received.extend)
                ended.set()

            b.handle(HOLD, take)
            await connect(a, b)
            payload = Random(2).randbytes(1 << 20)
            with trio.fail_after(PATIENCE):
                async with await a.open_stream(b.peer_id, HOLD) as stream:
                    await stream.send(payload)
                    await stream.close_write()
                    await ended.wait()
            assert received == payload

    async def test_what_a_sink_raises_ends_the_reading_and_nothing_else(self) -> None:
        async with self.networks() as (a, b):
            raised: list[str] = []
            calls: list[bytes] = []

            def refuse(data: bytes) -> None:
                calls.append(data)
                raise ValueError("not like this")

            async def take(stream: Stream) -> None:
                try:
                    await stream.pump(refuse)
                except ValueError as error:
                    raised.append(str(error))
                    stream.reset()

            b.handle(HOLD, take)
            b.handle(ECHO, echo)
            await connect(a, b)
            with trio.fail_after(PATIENCE), suppress(StreamReset):
                stream = await a.open_stream(b.peer_id, HOLD)
                await stream.send(b"first")
                while True:
                    await stream.send(b"more")
                    await trio.sleep(0.01)
            assert raised == ["not like this"]
            assert len(calls) == 1
            assert await ask(a, b, b"unharmed") == b"unharmed"

    async def test_sending_without_waiting_is_all_or_nothing(self) -> None:
        async with self.networks() as (a, b):
            received: list[bytes] = []
            go = trio.Event()

            async def late(stream: Stream) -> None:
                await go.wait()
                received.append(await read_all(stream))

            b.handle(HOLD, late)
            await connect(a, b)
            with trio.fail_after(PATIENCE):
                stream = await a.open_stream(b.peer_id, HOLD)
                sent = b""
                for number in range(2000):
                    piece = number.to_bytes(2, "big") * 500
                    if not stream.send_nowait(piece):
                        break
                    sent += piece
                else:
                    pytest.fail("two megabytes were taken that nobody reads")
                go.set()
                await stream.close_write()
                assert not stream.send_nowait(b"too late")
                await eventually(lambda: bool(received))
            assert received == [sent]

    async def test_a_sender_waits_for_a_reader_that_does_not_read(self) -> None:
        async with self.networks() as (a, b):
            go = trio.Event()
            received: list[bytes] = []

            async def late(stream: Stream) -> None:
                await go.wait()
                received.append(await read_all(stream))

            b.handle(HOLD, late)
            b.handle(ECHO, echo)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, HOLD, bulk=True)
            payload = Random(1).randbytes(4 << 20)
            with trio.move_on_after(0.5) as scope:
                await stream.send(payload)
            assert scope.cancelled_caught, "four MiB went to a peer that reads nothing"
            assert await ask(a, b, b"others pass") == b"others pass"
            go.set()
            with trio.fail_after(PATIENCE):
                await stream.close_write()
            await eventually(lambda: bool(received))
            assert payload.startswith(received[0])
            assert 128 << 10 <= len(received[0]) <= 2 << 20

    async def test_five_megabytes_each_way_arrive_whole(self) -> None:
        async with self.networks() as (a, b):
            b.handle(ECHO, echo)
            await connect(a, b)
            payload = Random(2).randbytes(5_000_000)
            stream = await a.open_stream(b.peer_id, ECHO, bulk=True)

            async def send() -> None:
                await stream.send(payload)
                await stream.close_write()

            with trio.fail_after(4 * PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    assert await read_all(stream) == payload
            await stream.aclose()
            await eventually(lambda: a.statistics().streams == b.statistics().streams == 0)
            assert a.statistics().bytes_out >= len(payload) <= a.statistics().bytes_in

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self.networks() as (a, b):
            payload = Random(3).randbytes(300_000)

            async def drip(stream: Stream) -> None:
                for start in range(0, len(payload), 3000):
                    await stream.send(payload[start : start + 3000])
                    await trio.sleep(0.001)

            b.handle(ECHO, drip)
            await connect(a, b)
            received = bytearray()
            cancelled = 0
            stream = await a.open_stream(b.peer_id, ECHO)
            random = Random(4)
            with trio.fail_after(PATIENCE):
                while len(received) < len(payload):
                    with trio.move_on_after(random.uniform(0, 0.001)) as scope:
                        received += await stream.receive(random.randint(1, 5000))
                    cancelled += scope.cancelled_caught
            assert bytes(received) == payload
            assert cancelled > 10
            await stream.aclose()

    async def test_a_sender_whom_nobody_reads_any_more_is_told_even_while_both_wait(self) -> None:
        async with self.networks(limits=replace(LIMITS, linger=0.3)) as (a, b):

            async def talk_and_leave(stream: Stream) -> None:
                await stream.send(bytes(200_000))

            b.handle(HOLD, talk_and_leave)
            b.handle(ECHO, echo)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, HOLD)
            with trio.fail_after(PATIENCE), pytest.raises(StreamReset):
                while True:  # and reads nothing of what the other has to say
                    await stream.send(bytes(600_000))
            stream.reset()
            await eventually(lambda: a.statistics().streams == b.statistics().streams == 0)
            assert await ask(a, b, b"others pass") == b"others pass"

    async def test_several_senders_on_one_stream_all_get_through(self) -> None:
        async with self.networks() as (a, b):
            received: list[int] = []

            async def count(stream: Stream) -> None:
                await trio.sleep(0.1)
                received.append(len(await read_all(stream)))

            b.handle(HOLD, count)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, HOLD)
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(stream.send, bytes(1_000_000))
                await stream.close_write()
                await eventually(lambda: received == [3_000_000])

    async def test_a_close_that_is_cancelled_resets_the_stream(self) -> None:
        async with self.networks() as (a, b):
            b.handle(ECHO, echo)
            await connect(a, b)
            await trio.sleep(0.1)
            stream = await a.open_stream(b.peer_id, ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.aclose()
            assert scope.cancelled_caught
            await eventually(lambda: a.statistics().streams == b.statistics().streams == 0)

    async def test_a_stream_that_is_closed_and_then_reset_is_gone_at_both_ends(self) -> None:
        async with self.networks() as (a, b):

            async def hold(stream: Stream) -> None:
                await trio.sleep_forever()

            b.handle(HOLD, hold)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, HOLD)
            await stream.aclose()
            stream.reset()
            late = await a.open_stream(b.peer_id, HOLD)
            await late.send(b"x")
            await trio.sleep(0.1)
            assert a.statistics().streams == 1
            late.reset()

    async def test_a_protocol_with_a_rate_of_its_own_is_opened_no_more_often(self) -> None:
        async with self.networks() as (a, b):
            b.handle(HOLD, echo, max_streams=100, rate=Rate(0.01, 3))
            b.handle(ECHO, echo)
            await connect(a, b)
            opened = 0
            with trio.fail_after(PATIENCE), pytest.raises(NetworkError):
                for _ in range(10):
                    stream = await a.open_stream(b.peer_id, HOLD)
                    await stream.send(b"?")
                    opened += await stream.receive() == b"?"
                    stream.reset()
                raise AssertionError("ten streams were served")
            assert opened == 3
            assert await ask(a, b, b"others pass") == b"others pass"
            assert b.statistics().streams_refused == 1

    async def test_a_peer_holds_no_more_streams_than_the_protocol_allows(self) -> None:
        async with self.networks() as (a, b):
            b.handle(HOLD, echo, max_streams=2)
            await connect(a, b)
            held = [await a.open_stream(b.peer_id, HOLD) for _ in range(2)]
            for stream in held:
                await stream.send(b"?")
                assert await stream.receive() == b"?"
            with trio.fail_after(PATIENCE), pytest.raises(NetworkError):
                extra = await a.open_stream(b.peer_id, HOLD)
                await extra.send(b"?")
                assert await extra.receive() != b"?"
                raise StreamReset("ended without an answer")
            for stream in held:
                await stream.send(b"!")
                assert await stream.receive() == b"!"
            await held[0].aclose()
            await trio.sleep(0.2)
            with trio.fail_after(PATIENCE):
                again = await a.open_stream(b.peer_id, HOLD)
                await again.send(b"?")
                assert await again.receive() == b"?"
