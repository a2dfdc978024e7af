"""What a network does by the clock: notice who is gone, drop duplicates, keep the books."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from owm.net._limits import NetworkLimits
from owm.net._muxed import MuxedConnection
from owm.net._ping import SHORTEST_INTERVAL

__all__ = ["KeepAlive", "look_after"]

_TICKS: Final = 6  # looks per interval
_DUPLICATE_FOR: Final = 5.0  # seconds until the spare connection of a simultaneous dial goes, once it is idle


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How soon a connection whose other end froze or vanished is given up.

    Raises:
        ValueError: pings more often than a peer bears, or no time at all.
    """

    every: float = 15.0  #: seconds between pings on each connection
    timeout: float = 10.0  #: seconds for the answer, where nothing else shows that the peer is there

    def __post_init__(self) -> None:
        if self.every < SHORTEST_INTERVAL:
            raise ValueError(f"a ping every {self.every:g} s: peers bear one every {SHORTEST_INTERVAL:g} s")
        if self.timeout <= 0:
            raise ValueError("the time for an answer is positive")


class _Network(Protocol):
    limits: NetworkLimits

    def live(self) -> Iterator[MuxedConnection]: ...
    def account(self, connection: MuxedConnection) -> None: ...
    def economise(self) -> None: ...
    def trim(self) -> None: ...
    def close_soon(self, connection: MuxedConnection, reason: str) -> None: ...


async def look_after(network: _Network, keep_alive: KeepAlive) -> None:
    """Run until cancelled."""
    pinged: dict[MuxedConnection, float] = {}
    idle: dict[MuxedConnection, float] = {}
    linger = network.limits.linger
    while True:
        await trio.sleep(keep_alive.every / _TICKS)
        now = trio.current_time()
        live = list(network.live())
        pinged = {connection: pinged.get(connection, now) for connection in live}
        for connection in live:
            network.account(connection)
            if connection.is_lost(now, keep_alive.timeout):
                connection.kill("the keep-alive timed out")
            elif connection.leaving and (not connection.streams or now - connection.leaving_since > linger):
                network.close_soon(connection, "the peer is leaving")
            elif now - pinged[connection] >= keep_alive.every:
                pinged[connection] = now
                connection.ping()
            for stream in list(connection.streams.values()):
                if stream.discarding_since is not None and now - stream.discarding_since > linger:
                    stream.reset()  # even if not all is out: the peer, too, may be waiting for us to read
        network.economise()
        idle = _drop_duplicates(network, live, idle, now)
        network.trim()


def _drop_duplicates(
    network: _Network, live: list[MuxedConnection], idle: dict[MuxedConnection, float], now: float
) -> dict[MuxedConnection, float]:
    """Close the second connection with a peer once nothing has run on it for a while and the first one answers."""
    preferred: dict[bytes, MuxedConnection] = {}
    still: dict[MuxedConnection, float] = {}
    for connection in live:
        first = preferred.setdefault(connection.remote, connection)
        if first is connection or connection.leaving:
            continue
        if not connection.streams and not first.leaving and not first.is_pinging:
            still[connection] = idle.get(connection, now)
            if now - still[connection] >= _DUPLICATE_FOR:
                network.close_soon(connection, "closed: a second connection is not needed")
    return still
