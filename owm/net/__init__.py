"""The network: peers, connections, streams and calls, over libp2p or in memory."""

from owm.net._interface import (
    Connection,
    Handler,
    Network,
    NetworkEvent,
    NetworkStatistics,
    PeerConnected,
    PeerDisconnected,
    Penalty,
    Stream,
)

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
