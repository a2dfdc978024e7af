"""What one peer spends on the network at most: ``[limits]`` of the settings."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NetworkLimits"]


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """The budget of a network; the defaults suit a home connection.

    Raises:
        ValueError: a limit is not positive, or they contradict each other.
    """

    max_connections: int = 200  #: live connections, both directions
    max_inbound: int = 160  #: of them, opened by others
    high_water: int = 180  #: connections above which unprotected ones are trimmed
    low_water: int = 150  #: down to this many
    max_per_peer: int = 2  #: connections with one peer (a simultaneous dial makes two)
    max_per_subnet: int = 8  #: connections of one subnet group, inbound and outbound each, see owm.net._groups
    max_handshakes: int = 100  #: inbound connections that have not authenticated yet
    max_handshakes_per_subnet: int = 8  #: inbound connections of one group that have not authenticated yet
    reserved_protected: int = 16  #: slots that only protected peers may take
    exempt_local: bool = False  #: loopback and private addresses are under no subnet caps: for devnets
    max_streams_per_peer: int = 256  #: open at once, both directions
    max_unread_per_peer: int = 16 << 20  #: received bytes that wait for a reader, on one connection
    max_unread: int = 64 << 20  #: on all connections; each may have 256 KiB beyond it
    stream_rate: float = 200.0  #: streams per second that a peer may open for one protocol, on average
    stream_burst: float = 500.0  #: at once; a subnet group may do four times as much
    max_bytes_per_day: int | None = None  #: in any 24 hours, sent and received together; None for no limit
    handshake_timeout: float = 10.0  #: seconds until an inbound connection must have authenticated
    dial_timeout: float = 10.0  #: seconds for one address
    dial_stagger: float = 0.25  #: seconds between the starts of raced dials (RFC 8305)
    max_racing: int = 4  #: addresses of one peer tried at once
    max_addresses: int = 16  #: addresses of one peer tried at all
    max_dials: int = 32  #: dials under way at once
    first_backoff: float = 0.5  #: seconds after the first failure
    longest_backoff: float = 600.0  #: seconds
    stable_after: float = 10.0  #: seconds a connection must last for the back-off to be forgotten
    linger: float = 30.0  #: seconds for which half closed streams, and streams with a peer that leaves, are left to end
    grace_period: float = 10.0  #: seconds in which a new connection is not trimmed

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            least = 0 if name in ("max_inbound", "reserved_protected", "grace_period", "dial_stagger") else 1e-9
            if value is not None and not isinstance(value, bool) and value < least:
                raise ValueError(f"the limit {name} cannot be {value}")
        if not self.low_water <= self.high_water <= self.max_connections:
            raise ValueError("limits must satisfy low_water <= high_water <= max_connections")
        if self.max_inbound > self.max_connections or self.reserved_protected >= self.max_connections:
            raise ValueError("max_inbound and reserved_protected cannot exceed max_connections")
