"""What a network does by the clock: notice who is gone, drop duplicates, keep the books."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from owm.net._muxed import MuxedConnection

__all__ = ["KeepAlive", "look_after"]

_TICKS: Final = 6  # looks per interval
_LINGER: Final = 30.0  # seconds for which a stream that nobody reads may stay half open
_DUPLICATE_FOR: Final = 5.0  # seconds until the spare connection of a simultaneous dial goes, once it is idle


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How soon a connection whose other end froze or vanished is given up."""

    every: float = 15.0  #: seconds between pings on each connection
    timeout: float = 10.0  #: seconds for the answer


class _Network(Protocol):
    def live(self) -> Iterator[MuxedConnection]: ...
    def account(self, connection: MuxedConnection) -> None: ...
    def trim(self) -> None: ...
    def close_soon(self, connection: MuxedConnection, reason: str) -> None: ...


async def look_after(network: _Network, keep_alive: KeepAlive) -> None:
    """Run until cancelled."""
    pinged: dict[MuxedConnection, float] = {}
    idle: dict[MuxedConnection, float] = {}
    while True:
        await trio.sleep(keep_alive.every / _TICKS)
        now = trio.current_time()
        live = list(network.live())
        pinged = {connection: pinged.get(connection, now) for connection in live}
        for connection in live:
            network.account(connection)
            if connection.ping_sent is not None and now - connection.ping_sent > keep_alive.timeout:
                connection.kill("the keep-alive timed out")
            elif now - pinged[connection] >= keep_alive.every:
                pinged[connection] = now
                connection.ping()
            for stream in list(connection.streams.values()):
                if stream.discarding_since is not None and now - stream.discarding_since > _LINGER:
                    stream.connection.mux.finish(stream.id)
                    stream.end_discarding()
        idle = _drop_duplicates(network, live, idle, now)
        network.trim()


def _drop_duplicates(
    network: _Network, live: list[MuxedConnection], idle: dict[MuxedConnection, float], now: float
) -> dict[MuxedConnection, float]:
    """Close the second connection with a peer once nothing has run on it for a while."""
    preferred: set[bytes] = set()
    still: dict[MuxedConnection, float] = {}
    for connection in live:
        if connection.remote not in preferred:
            preferred.add(connection.remote)
        elif not connection.streams:
            still[connection] = idle.get(connection, now)
            if now - still[connection] >= _DUPLICATE_FOR:
                network.close_soon(connection, "closed: a second connection is not needed")
    return still
