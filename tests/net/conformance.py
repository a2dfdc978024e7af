"""What every implementation of :class:`owm.net.Network` must do; each one's test module subclasses this suite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest
import trio

from owm.identity import Identity
from owm.net import Network, NetworkLimits, PeerConnected, PeerDisconnected, Penalty, Stream
from owm.net.errors import DialFailed, NetworkError, NotConnected, NotDialled, ProtocolNotSupported, StreamReset

ECHO = "/owm/test/echo/1"
HOLD = "/owm/test/hold/1"
PATIENCE = 20.0  # seconds: a bound for what must happen, never a wait
LIMITS = NetworkLimits(exempt_local=True, first_backoff=0.01)


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def read_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.receive():
        received += data
    return bytes(received)


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for happens inside the code under test
            await trio.sleep(0.01)


async def connect(a: Network, b: Network) -> None:
    with trio.fail_after(PATIENCE):
        assert await a.connect(b.peer_id, b.addresses) == b.peer_id
    await eventually(lambda: b.is_connected(a.peer_id))


async def ask(a: Network, b: Network, message: bytes) -> bytes:
    with trio.fail_after(PATIENCE):
        async with await a.open_stream(b.peer_id, ECHO) as stream:
            await stream.send(message)
            await stream.close_write()
            return await read_all(stream)


class NetworkConformance:
    """Subclasses provide :meth:`networks`."""

    def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AbstractAsyncContextManager[list[Network]]:
        """Running networks with ``identity(1)``, ``identity(2)``, ..., none connected to another."""
        raise NotImplementedError

    async def test_a_connection_is_seen_at_both_ends(self) -> None:
        async with self.networks() as (a, b):
            await connect(a, b)
            (here,), (there,) = a.connections(), b.connections()
            assert a.peers() == (b.peer_id,) and b.peers() == (a.peer_id,)
            assert (here.peer, here.inbound, there.peer, there.inbound) == (b.peer_id, False, a.peer_id, True)
            assert here.address in b.addresses
            assert a.statistics().connections == b.statistics().connections == b.statistics().inbound == 1

    async def test_each_learns_what_the_other_speaks_and_where_it_listens(self) -> None:
        async with self.networks() as (a, b):
            a.handle(HOLD, echo)
            b.handle(ECHO, echo)
            await connect(a, b)
            await eventually(lambda: ECHO in a.connections()[0].protocols)
            await eventually(lambda: HOLD in b.connections()[0].protocols)
            assert set(b.addresses) <= set(a.connections()[0].addresses)
            assert set(a.addresses) <= set(b.connections()[0].addresses)

    async def test_connecting_again_uses_the_connection_there_is(self) -> None:
        async with self.networks() as (a, b):
            await connect(a, b)
            assert await a.connect(b.peer_id, []) == b.peer_id
            assert await b.connect(a.peer_id, a.addresses) == a.peer_id
            assert a.statistics().dials + b.statistics().dials == 1

    async def test_whoever_answers_is_accepted_when_nobody_is_expected(self) -> None:
        async with self.networks() as (a, b):
            with trio.fail_after(PATIENCE):
                assert await a.connect(None, b.addresses) == b.peer_id

    async def test_another_peer_at_the_address_is_not_accepted(self) -> None:
        async with self.networks() as (a, b):
            stranger = identity(99).peer_id
            with trio.fail_after(PATIENCE), pytest.raises(DialFailed) as caught:
                await a.connect(stranger, b.addresses)
            assert set(caught.value.reasons) == set(b.addresses)
            assert not a.is_connected(stranger) and not a.is_connected(b.peer_id)
            await eventually(lambda: not b.connections())
            # That failure says nothing about another address, so a dial that is put off is told from one that failed.
            with trio.fail_after(PATIENCE), pytest.raises(NotDialled) as put_off:
                await a.connect(stranger, ["/ip4/127.0.0.1/tcp/1"])
            assert put_off.value.retry_after is not None and 0 < put_off.value.retry_after <= 1

    async def test_the_address_that_works_wins_and_a_dead_one_says_why(self) -> None:
        async with self.networks() as (a, b):
            dead = "/ip4/127.0.0.1/tcp/1"
            with trio.fail_after(PATIENCE):
                assert await a.connect(b.peer_id, [dead, *b.addresses]) == b.peer_id
            with trio.fail_after(PATIENCE), pytest.raises(DialFailed) as caught:
                await a.connect(identity(98).peer_id, [dead])
            assert caught.value.reasons[dead]

    async def test_a_peer_without_a_connection_is_an_error(self) -> None:
        async with self.networks() as (a, b):
            with pytest.raises(NotConnected):
                await a.open_stream(b.peer_id, ECHO)

    async def test_a_protocol_that_the_peer_does_not_speak_is_an_error_and_no_more(self) -> None:
        async with self.networks() as (a, b):
            b.handle(ECHO, echo)
            await connect(a, b)
            with trio.fail_after(PATIENCE), pytest.raises(ProtocolNotSupported):
                await a.open_stream(b.peer_id, "/owm/test/unheard-of/1")
            assert await ask(a, b, b"still here") == b"still here"

    async def test_one_connection_is_described_as_among_all(self) -> None:
        async with self.networks(3) as (a, b, c):
            await connect(a, b)
            assert a.connection(c.peer_id) is None
            found = a.connection(b.peer_id)
            assert found is not None
            assert found.peer == b.peer_id and not found.inbound
            assert [connection.peer for connection in a.connections()] == [found.peer]

    async def test_events_tell_of_the_first_connection_and_of_the_last_one_gone(self) -> None:
        async with self.networks() as (a, b):
            early = b.events()
            await connect(a, b)
            with trio.fail_after(PATIENCE):
                assert await early.receive() == PeerConnected(a.peer_id, inbound=True)
                assert await b.events().receive() == PeerConnected(a.peer_id, inbound=True)
                assert await a.events().receive() == PeerConnected(b.peer_id, inbound=False)
                await a.disconnect(b.peer_id)
                event = await early.receive()
            assert isinstance(event, PeerDisconnected) and event.peer == a.peer_id and event.reason

    async def test_disconnecting_ends_what_was_open_at_both_ends(self) -> None:
        async with self.networks() as (a, b):
            b.handle(ECHO, echo)
            await connect(a, b)
            stream = await a.open_stream(b.peer_id, ECHO)
            with trio.fail_after(PATIENCE):
                await a.disconnect(b.peer_id)
                await a.disconnect(identity(97).peer_id)
            assert not a.is_connected(b.peer_id) and a.connections() == ()
            with pytest.raises(NetworkError):
                await a.open_stream(b.peer_id, ECHO)
            with trio.fail_after(PATIENCE), pytest.raises(StreamReset):
                await stream.receive()
            await eventually(lambda: not b.is_connected(a.peer_id) and b.statistics().streams == 0)
            await connect(a, b)
            assert await ask(a, b, b"back again") == b"back again"

    async def test_two_peers_that_dial_each_other_at_once_are_connected_once(self) -> None:
        async with self.networks() as (a, b):
            a.handle(ECHO, echo)
            b.handle(ECHO, echo)
            events = a.events()
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(a.connect, b.peer_id, b.addresses)
                    nursery.start_soon(b.connect, a.peer_id, a.addresses)
            assert [c.peer for c in a.connections()] == [b.peer_id]
            await eventually(lambda: [c.peer for c in b.connections()] == [a.peer_id])
            assert await ask(a, b, b"one way") == b"one way"
            assert await ask(b, a, b"the other") == b"the other"
            assert isinstance(events.receive_nowait(), PeerConnected)
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()

    async def test_trimming_spares_protected_peers(self) -> None:
        limits = NetworkLimits(
            exempt_local=True,
            max_connections=8,
            max_inbound=8,
            high_water=4,
            low_water=2,
            reserved_protected=1,
            grace_period=0.0,
            first_backoff=0.01,
        )
        async with self.networks(6, limits) as (hub, friend, *others):
            await connect(friend, hub)
            hub.protect(friend.peer_id, "a friend")
            for other in others:
                with trio.fail_after(PATIENCE):
                    await other.connect(hub.peer_id, hub.addresses)
                await trio.sleep(0.05)
            await eventually(lambda: len(hub.connections()) <= 4)
            assert hub.is_connected(friend.peer_id)
            assert [c.protected for c in hub.connections() if c.peer == friend.peer_id] == [True]
            hub.protect(friend.peer_id, "a friend", protected=False)
            assert not any(c.protected for c in hub.connections())

    async def test_penalties_disconnect_and_then_ban(self) -> None:
        async with self.networks() as (a, b):
            await connect(a, b)
            b.penalise(a.peer_id, Penalty.LOW_TOLERANCE, "testing")
            b.penalise(a.peer_id, Penalty.LOW_TOLERANCE, "testing")
            await trio.sleep(0.05)
            assert b.is_connected(a.peer_id) and b.connections()[0].score == pytest.approx(-20, abs=0.1)
            b.penalise(a.peer_id, Penalty.MID_TOLERANCE, "testing")
            await eventually(lambda: not a.is_connected(b.peer_id) and not b.is_connected(a.peer_id))
            b.penalise(a.peer_id, Penalty.FATAL, "worse")
            assert b.statistics().penalties == {"testing": 3, "worse": 1}
            with trio.fail_after(PATIENCE), pytest.raises(DialFailed):
                await b.connect(a.peer_id, a.addresses)
            # The banned peer may find out only once it has authenticated; it is never a peer of ours again.
            events = b.events()
            await trio.sleep(0.1)
            with trio.fail_after(PATIENCE):
                with suppress(NetworkError):
                    await a.connect(b.peer_id, b.addresses)
            await eventually(lambda: not a.is_connected(b.peer_id))
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()
            assert b.connections() == ()

    async def test_leaving_ends_every_connection(self) -> None:
        async with self.networks(1) as (a,):
            async with self.networks(2) as (_, b):
                await connect(b, a)
            await eventually(lambda: not a.connections())
            assert a.statistics().streams == 0


__all__ = ["NetworkConformance", "ask", "connect", "echo", "eventually", "identity", "read_all"]
