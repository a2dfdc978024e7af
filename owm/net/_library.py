"""The py-libp2p host that foreign peers meet: identify and peer store. Our connections enter it multiplexed.

The library's own data path (about fifteen locks a message) is never used; its listener, dialer, security and muxer
upgrades, auto-connector and resource manager neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import libp2p
import multiaddr
import structlog
import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_static_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux

from owm.identity import Identity, PeerId
from owm.net._core_peer_record import MAX_PEER_RECORD
from owm.net._interface import Stream
from owm.net._muxed import MuxedConnection
from owm.net._muxed_stream import MuxedStream
from owm.net.errors import NetworkError, StreamReset

__all__ = ["LibraryHost"]

# Importing the library gives its loggers levels and handlers of its own: its news are no news to our users.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)

_log = structlog.get_logger(__name__)
_PING: Final = "/ipfs/ping/1.0.0"  # served by ourselves, with a quota
_STRAYS: Final = 32  # entries of peers that have gone which are put up with before they are looked for
_IDENTIFY_TIMEOUT: Final = 30.0


class LibraryHost:
    """Runs the library's host beside our transport.

    Args:
        identity: its seed is the host's key.
        addresses: what identify tells others, asked each time.
        max_connections: above our own cap, so that the library never closes anything.
    """

    def __init__(self, identity: Identity, addresses: Callable[[], Sequence[str]], max_connections: int) -> None:
        keys = create_new_key_pair(identity.seed)
        swarm: Any = libp2p.new_swarm(
            key_pair=keys,
            # Never the defaults: they offer /plaintext/2.0.0, under which anybody can claim any identity.
            sec_opt={NOISE: NoiseTransport(keys, noise_privkey=create_static_key_pair().private_key)},
            muxer_opt={TProtocol(YAMUX): Yamux},
            transports=[],
            retry_config=RetryConfig(max_retries=0),
            connection_config=ConnectionConfig(
                max_connections=2 * max_connections + 16,
                max_connections_per_peer=16,
                min_connections=0,
                low_watermark=0,
                high_watermark=2 * max_connections,
            ),
        )
        swarm.auto_connector.maybe_connect = _never  # connects everybody with everybody otherwise
        swarm.auto_connector.record_disconnect = _forget  # remembers every peer for ever otherwise
        swarm.set_resource_manager(None)  # our own limits hold; the library's would turn away its own connections
        self._swarm = swarm
        self._host: Any = BasicHost(
            network=swarm,
            addrs_factory=lambda _: [multiaddr.Multiaddr(address) for address in addresses()],
            disable_identify_address_discovery=True,  # strangers' words, which nobody here would read
        )
        self._attached: dict[MuxedConnection, _LibraryConnection] = {}

    @property
    def protocols(self) -> frozenset[str]:
        """What the library serves itself."""
        return frozenset(str(protocol) for protocol in self._own_handlers() if str(protocol) != _PING)

    def announce(self, protocol: str) -> None:
        """Let identify name a protocol that is served by ourselves."""
        if protocol not in self._own_handlers():
            self._host.set_stream_handler(TProtocol(protocol), _never_called)

    def running(self) -> Any:
        """The library's services; an async context manager."""
        return self._host.run([])

    async def attach(self, connection: MuxedConnection) -> None:
        """Show a connection to the library, which then identifies the peer; it notices by itself when it ends."""
        shown = self._attached[connection] = _LibraryConnection(connection)
        try:
            shown.known = await self._swarm.add_conn(shown, direction="inbound" if connection.inbound else "outbound")
        except Exception as error:  # noqa: BLE001 - the connection serves us without the library
            _log.debug("the library refused a connection", peer=connection.remote.short, error=repr(error))
        finally:
            shown.ready.set()

    def identified(self, peer: PeerId) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The addresses and the protocols that a peer told us of; empty until it did."""
        known, store = ID(bytes(peer)), self._host.get_peerstore()
        try:
            addresses = tuple(filter(None, map(_text, store.addrs(known))))
        except PeerStoreError:
            addresses = ()
        try:
            protocols = tuple(str(protocol) for protocol in store.get_protocols(known))
        except PeerStoreError:
            protocols = ()
        return addresses, protocols

    def peer_record(self, peer: PeerId) -> bytes | None:
        """The signed record that a peer sent when it identified itself; the library has checked it."""
        # Not get_peer_record: that drops records after two hours, however long the connection lives.
        state = self._host.get_peerstore().peer_record_map.get(ID(bytes(peer)))
        if state is None:
            return None
        envelope: bytes = state.envelope.marshal_envelope()
        return envelope if len(envelope) <= MAX_PEER_RECORD else None

    def detach(self, connection: MuxedConnection) -> None:
        """A connection is gone; with a peer's last one goes what it has told, which the library would keep."""
        self._attached.pop(connection, None)
        connected = {attached.remote for attached in self._attached}
        known = self._host.get_peerstore().peer_data_map
        gone = [ID(bytes(connection.remote))] if connection.remote not in connected else []
        if len(known) > 2 * len(connected) + _STRAYS:
            # An identification that ends after its connection leaves an entry behind.
            kept = {self._host.get_id(), *(ID(bytes(peer)) for peer in connected)}
            gone = [peer for peer in known if peer not in kept]
        for peer in gone:
            self._host._identified_peers.pop(peer, None)  # or it would not be asked when it comes back at once
            with suppress(PeerStoreError):
                self._host.get_peerstore().clear_peerdata(peer)

    async def serve(self, stream: MuxedStream) -> None:
        """Run the library's handler for a stream whose protocol was negotiated by us.

        Raises:
            NetworkError: the library does not know the connection.
        """
        shown = self._attached.get(stream.connection)
        if shown is None:
            raise NetworkError("the library does not know this connection")
        with trio.move_on_after(_IDENTIFY_TIMEOUT):
            await shown.ready.wait()
            if shown.known is None:
                raise NetworkError("the library does not know this connection")
            net_stream = NetStream(_LibraryStream(shown, stream), shown.known, None)
            await net_stream.set_state(StreamState.OPEN)
            net_stream.set_protocol(TProtocol(stream.protocol))
            await self._own_handlers()[TProtocol(stream.protocol)](net_stream)

    def _own_handlers(self) -> dict[TProtocol, Any]:
        handlers: dict[TProtocol, Any] = self._host.get_mux().handlers
        return handlers


class _LibraryConnection(IMuxedConn):  # type: ignore[misc]  # the library is untyped
    """Our connection as the library's swarm sees it. It accepts no streams here: we negotiate them ourselves."""

    negotiated_security_protocol = str(NOISE)
    negotiated_muxer_protocol = str(YAMUX)

    def __init__(self, connection: MuxedConnection) -> None:
        self.ours = connection
        self.peer_id = ID(bytes(connection.remote))
        self.event_started = trio.Event()
        self.ready = trio.Event()
        self.known: Any = None

    @property
    def is_initiator(self) -> bool:
        return not self.ours.inbound

    @property
    def is_established(self) -> bool:
        return not self.ours.closed.is_set()

    @property
    def is_closed(self) -> bool:
        return self.ours.closed.is_set()

    async def start(self) -> None:
        self.event_started.set()
        await self.ours.closed.wait()

    async def close(self) -> None:
        await self.ours.aclose("closed by the library")

    async def open_stream(self) -> IMuxedStream:
        try:
            return _LibraryStream(self, self.ours.open_stream())
        except StreamReset as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> IMuxedStream:
        await self.ours.closed.wait()
        raise MuxedConnUnavailable("the connection is closed")

    def get_transport_addresses(self) -> list[multiaddr.Multiaddr]:
        try:
            return [multiaddr.Multiaddr(self.ours.address)]
        except ValueError:
            return []

    def get_remote_address(self) -> tuple[str, int] | None:
        parts = self.ours.address.split("/")
        return (parts[2], int(parts[4])) if len(parts) >= 5 and parts[4].isdigit() else None

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


class _LibraryStream(IMuxedStream):  # type: ignore[misc]  # the library is untyped
    """Our stream as the library's protocols see it."""

    def __init__(self, connection: _LibraryConnection, stream: Stream) -> None:
        self.muxed_conn = connection
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        try:
            data = await self._stream.receive(n or 65536)
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error
        if not data:
            raise MuxedStreamEOF("the peer has finished")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error

    async def close(self) -> None:
        await self._stream.close_write()

    async def reset(self) -> None:
        self._stream.reset()

    def set_deadline(self, ttl: int) -> None:
        """The library never calls it for its own protocols: deadlines are set around them."""

    def get_remote_address(self) -> tuple[str, int] | None:
        connection = self.muxed_conn
        return connection.get_remote_address() if isinstance(connection, _LibraryConnection) else None

    async def __aenter__(self) -> IMuxedStream:
        return self


def _text(address: multiaddr.Multiaddr) -> str:
    """An address that a peer told, without the peer's id; empty where its bytes are none."""
    try:
        return str(address).partition("/p2p/")[0]
    except Exception:  # noqa: BLE001 - many kinds, for bytes that a stranger chose
        return ""


async def _never() -> None:
    """What the auto-connector does here."""


def _forget(peer: object) -> None:
    """What the auto-connector remembers here."""


async def _never_called(stream: object) -> None:
    """Stands for our own handlers in the list of protocols that identify tells."""
