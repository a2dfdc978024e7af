"""What the rest of OWM knows of a network: peers, connections, streams.

Addresses are multiaddr strings (``/ip4/127.0.0.1/tcp/9000``) without the ``/p2p/`` suffix unless said otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Self

import trio

from owm.identity import PeerId

if TYPE_CHECKING:
    from owm.net._budget import ByteBudget
    from owm.net._limits import NetworkLimits
    from owm.net._penalties import Penalties
    from owm.net._quota import Rate

__all__ = [
    "Connection",
    "Handler",
    "Network",
    "NetworkEvent",
    "NetworkStatistics",
    "PeerConnected",
    "PeerDisconnected",
    "Penalty",
    "Stream",
]


class Penalty(Enum):
    """The four levels at which a peer is blamed; the value is what its score loses (of 100)."""

    HIGH_TOLERANCE = 1
    MID_TOLERANCE = 5
    LOW_TOLERANCE = 10
    FATAL = 100


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """The first connection to a peer is up (authenticated, multiplexed)."""

    peer: PeerId
    inbound: bool


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The last connection to a peer is gone."""

    peer: PeerId
    reason: str


NetworkEvent = PeerConnected | PeerDisconnected


@dataclass(frozen=True, slots=True)
class Connection:
    """One live connection as shown to users."""

    peer: PeerId
    inbound: bool
    address: str  #: the remote's multiaddr
    opened: float  #: monotonic seconds when it came up
    streams: int  #: streams open now
    busy: bool  #: whether one of them shows that the connection is used: it is not of a lasting protocol
    round_trip: float | None  #: seconds, smoothed; None until measured
    score: float  #: 0 down to -100
    protected: bool  #: exempt from trimming
    addresses: tuple[str, ...] = ()  #: where the remote says it can be dialled
    protocols: tuple[str, ...] = ()  #: what the remote says it speaks; empty when it did not say


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """Counters since start; the same object feeds metrics, ``owm status`` and tests."""

    connections: int = 0  #: live connections
    inbound: int = 0  #: of them, opened by the other side
    dials: int = 0  #: dial attempts
    dials_failed: int = 0
    handshakes_failed: int = 0  #: inbound connections that never authenticated
    refused: int = 0  #: connections turned away by a cap, quota or ban
    streams_refused: int = 0  #: streams that peers opened beyond their quota
    penalised: int = 0  #: peers against whom something is held now
    banned: int = 0  #: of them, those that may not connect
    streams: int = 0  #: streams open now
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_left: int | None = None  #: of the day's budget; None where there is none
    penalties: dict[str, int] = field(default_factory=dict)  #: penalties given, by reason
    #: penalties given, by reason and level
    penalties_given: dict[tuple[str, str], int] = field(default_factory=dict, metadata={"labels": ("reason", "level")})


class Stream(ABC):
    """An ordered, reliable, half-closable byte stream to one peer, with back-pressure."""

    protocol: str
    remote: PeerId

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of ``data``; waits while the peer grants no window. At most what fitted is sent on cancellation.

        Raises:
            StreamReset: the peer or the connection went away.
        """

    @abstractmethod
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, at most ``max_bytes``; ``b""`` when the peer has finished writing.

        Cancellation loses nothing: bytes stay queued.

        Raises:
            StreamReset: the peer or the connection went away.
        """

    async def pump(self, sink: Callable[[bytes], None]) -> None:
        """Hand all that comes to ``sink``, at once and in order, until the peer has finished writing.

        Nobody reads meanwhile. For protocols of many small messages: spares the reader a turn of the event loop each.

        Raises:
            StreamReset: the peer or the connection went away.
            Exception: whatever ``sink`` raised; it is not called again.
        """
        while data := await self.receive():
            sink(data)

    def send_nowait(self, data: bytes) -> bool:
        """Send all of ``data`` without waiting; False when that cannot be done, and then nothing is sent.

        Where it can, the bytes leave at once: for messages that would otherwise each cost a turn of the event loop.
        """
        return False

    @abstractmethod
    async def close_write(self) -> None:
        """Tell the peer that nothing more will be sent; reading goes on. Idempotent."""

    @abstractmethod
    def reset(self) -> None:
        """Abort both directions at once, without waiting. Idempotent."""

    async def aclose(self) -> None:
        """Close for writing and stop reading. Never raises, but cancellation resets the stream; idempotent."""
        try:
            await self.close_write()
        except Exception:  # noqa: BLE001 - a stream that cannot be closed politely is reset
            self.reset()
        except BaseException:  # cancelled before the end was said
            self.reset()
            raise
        finally:
            self.reset_if_unfinished()

    @abstractmethod
    def reset_if_unfinished(self) -> None:
        """Release the stream: a no-op when both sides have finished, otherwise stop receiving."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, tb: object) -> None:
        if exc_type is None:
            await self.aclose()
        else:
            self.reset()


Handler = Callable[[Stream], Awaitable[None]]


class Network(ABC):
    """A peer's access to the others. Use as ``async with network.running():``; all tasks live in there."""

    peer_id: PeerId
    limits: NetworkLimits  #: what is spent on others at most
    penalties: Penalties  #: what peers are blamed for, over all their connections
    budget: ByteBudget | None  #: the day's bytes, where they are bounded

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[Self]:
        """Listen and serve until the block ends; leaving closes every connection."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs that others can dial, known once running."""

    @abstractmethod
    async def connect(self, peer: PeerId | None, addresses: Sequence[str]) -> PeerId:
        """Make sure there is a connection; returns whom we reached. ``peer`` None accepts whoever answers.

        A live connection is used as it is. Several addresses are raced, each with its own timeout.

        Raises:
            DialFailed: no address worked; ``reasons`` says what each one failed with.
        """

    @abstractmethod
    async def open_stream(self, peer: PeerId, protocol: str, *, bulk: bool = False) -> Stream:
        """Open and negotiate a stream over the live connection. ``bulk`` streams yield to small messages.

        Raises:
            NotConnected: there is no connection to that peer.
            ProtocolNotSupported: the peer does not speak that protocol.
            TooManyStreams: our own limit of streams with that peer is reached.
            StreamReset: the connection broke meanwhile.
        """

    @abstractmethod
    def handle(
        self,
        protocol: str,
        handler: Handler,
        *,
        max_streams: int = 8,
        control: bool = False,
        lasting: bool = False,
        rate: Rate | None = None,
    ) -> None:
        """Serve ``protocol``: each inbound stream runs ``handler`` in its own task, closed when it returns.

        What a handler raises resets its stream and is logged; it never reaches the network.
        ``max_streams`` bounds how many one peer may hold open at once. ``control`` protocols keep a peer in the
        network: they go on, slowly, when the day's bytes are used up, and no others do. Streams of
        ``lasting`` protocols stay open as long as their connection: they are no sign that it is used. ``rate`` is how
        often one peer may open a stream, where that is not the usual one of the limits; we keep to it ourselves.
        """

    @abstractmethod
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """A new subscription to connection events. Peers connected already are reported first."""

    @abstractmethod
    def connections(self) -> tuple[Connection, ...]:
        """The live connections, one per peer."""

    def peers(self) -> tuple[PeerId, ...]:
        """Whom we are connected to: :meth:`connections` without what is known of each."""
        return tuple(connection.peer for connection in self.connections())

    def connection(self, peer: PeerId) -> Connection | None:
        """The live connection with a peer, if there is one."""
        return next((connection for connection in self.connections() if connection.peer == peer), None)

    @abstractmethod
    def is_connected(self, peer: PeerId) -> bool: ...

    def peer_record(self, peer: PeerId) -> bytes | None:
        """The signed peer record (libp2p RFC 0003) that a connected peer gave us, for passing on; None without one."""
        return None

    @abstractmethod
    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection politely, within a second. Unknown peers are ignored."""

    @abstractmethod
    def protect(self, peer: PeerId, tag: str, protected: bool = True) -> None:
        """Exempt a peer's connection from trimming while any tag protects it."""

    @abstractmethod
    def penalise(self, peer: PeerId, penalty: Penalty, reason: str) -> None:
        """Lower the peer's score; below the thresholds it is disconnected, then banned."""

    @abstractmethod
    def statistics(self) -> NetworkStatistics: ...
