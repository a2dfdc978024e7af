"""The sending side of DHT streams: order, bounds, and a peer that does not read what it asked for."""

from __future__ import annotations

from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from owm.dht import _links, dht_protocol
from owm.dht._core_types import Contact, Message, MessageType, SendQuery
from owm.dht._core_wire import encode_message
from owm.dht._links import LinkEvents
from owm.dht._sending import Sender
from owm.net import Link, MemoryHub, write_frame
from owm.net._core_frames import encode_frame
from owm.net.errors import StreamReset
from tests.dht._nets import NETWORK, identity, running_peers
from tests.net.conformance import LIMITS


class Narrow:
    """A stream that takes at once what there is room for, and everything else when ``gate`` is set."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = bytearray()
        self.gate = trio.Event()
        self.error: Exception | None = None

    class remote:
        short = "somebody"

    def send_nowait(self, data: bytes) -> bool:
        if len(data) > self.room:
            return False
        self.room -= len(data)
        self.taken += data
        return True

    async def send(self, data: bytes) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.taken += data


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(0, 2000), st.integers(0, 30))
def test_frames_leave_in_their_order_however_little_fits(frames: list[bytes], room: int, later: int) -> None:
    stream = Narrow(room)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            sender = Sender(stream, nursery.start_soon, 1 << 20, nursery.cancel_scope.cancel)  # type: ignore[arg-type]
            for frame in frames[:later]:
                sender.put(frame)
            await trio.testing.wait_all_tasks_blocked()
            for frame in frames[later:]:
                sender.put(frame)
            stream.gate.set()
            await sender.finish()

    trio.run(main)
    assert bytes(stream.taken) == b"".join(map(encode_frame, frames))


async def test_what_a_peer_does_not_take_waits_up_to_a_bound(autojump_clock: MockClock) -> None:
    stream, broken = Narrow(0), trio.Event()
    async with trio.open_nursery() as nursery:
        sender = Sender(stream, nursery.start_soon, 1000, broken.set)  # type: ignore[arg-type]
        for _ in range(9):
            sender.put(bytes(100))
        with pytest.raises(StreamReset, match="does not take what it asked for"):
            sender.put(bytes(100))
        await trio.sleep(119)
        assert not broken.is_set()
        await trio.sleep(2)
        assert broken.is_set(), "for two minutes it took nothing"


async def test_a_stream_that_breaks_while_something_waits_is_noticed(autojump_clock: MockClock) -> None:
    stream, broken = Narrow(0), trio.Event()
    stream.error = StreamReset("gone")
    stream.gate.set()
    async with trio.open_nursery() as nursery:
        sender = Sender(stream, nursery.start_soon, 1000, broken.set)  # type: ignore[arg-type]
        sender.put(b"query")
        await sender.finish()
    assert broken.is_set()


async def test_a_peer_that_reads_no_answers_loses_its_stream_and_nobody_else_does(autojump_clock: MockClock) -> None:
    """Answers are larger than queries: who asks and never reads must not have us hold them all."""
    hub = MemoryHub(Random(1), Link(latency=0.01))
    async with running_peers(25, hub) as peers:
        glutton = hub.network(identity(500), limits=LIMITS)
        query = encode_message(Message(MessageType.FIND_NODE, bytes(identity(3).peer_id)))
        async with glutton.running():
            await glutton.connect(peers[0].identity.peer_id, peers[0].network.addresses)
            stream = await glutton.open_stream(peers[0].identity.peer_id, dht_protocol(NETWORK))
            asked = 0
            with pytest.raises(StreamReset):
                while asked < 20_000:
                    await write_frame(stream, query)
                    asked += 1
                    await trio.sleep(0.2)  # below what a peer may ask
            assert asked > 100
            found = await peers[4].dht.find_peer(peers[9].identity.peer_id)
            assert found is not None


async def test_a_registration_that_the_peer_does_not_take_has_failed(autojump_clock: MockClock) -> None:
    """Nothing answers ADD_PROVIDER, so what was sent counts as taken: what was not sent must not."""
    answered: list[int] = []
    failed: list[int] = []
    events = LinkEvents(lambda query, *_: answered.append(query), lambda query, *_: failed.append(query))
    network = MemoryHub(Random(1)).network(identity(1), limits=LIMITS)
    contact = Contact(bytes(identity(2).peer_id))
    stream = Narrow(100)
    link = _links.Link(network, dht_protocol(NETWORK), contact, events, 10.0, lambda run: None)
    link._sender = Sender(stream, lambda run: None, 0, link.end)  # type: ignore[arg-type]
    for number in range(3):
        link.send(SendQuery(number, contact, Message(MessageType.ADD_PROVIDER, bytes(40)), 10.0))
    assert answered == [0, 1] and failed == [2]
    assert not link.open
