"""The network: peers, connections, streams and calls, over libp2p or in memory."""

from owm.net._admission import Admission
from owm.net._budget import ByteBudget
from owm.net._call_client import OutgoingCall
from owm.net._call_server import Call, CallHandler
from owm.net._calls import Calls
from owm.net._core_peer_record import PeerRecord, open_peer_record, sign_peer_record
from owm.net._dialer import Attempt, Dialer, DialPlan
from owm.net._events import EventHub
from owm.net._frames import FrameStream, pump_frames, read_frame, write_frame
from owm.net._groups import group_of, is_local
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
from owm.net._limits import NetworkLimits
from owm.net._memory import MemoryHub
from owm.net._memory_link import Link, Nat
from owm.net._memory_network import MemoryNetwork
from owm.net._penalties import HALF_LIFE, Penalties, Standing
from owm.net._quota import PeerQuotas, Quota, QuotaTable, Rate

__all__ = [
    "HALF_LIFE",
    "Admission",
    "Attempt",
    "ByteBudget",
    "Call",
    "CallHandler",
    "Calls",
    "Connection",
    "DialPlan",
    "Dialer",
    "EventHub",
    "FrameStream",
    "Handler",
    "Link",
    "MemoryHub",
    "MemoryNetwork",
    "Nat",
    "Network",
    "NetworkEvent",
    "NetworkLimits",
    "NetworkStatistics",
    "OutgoingCall",
    "PeerConnected",
    "PeerDisconnected",
    "PeerQuotas",
    "PeerRecord",
    "Penalties",
    "Penalty",
    "Quota",
    "QuotaTable",
    "Rate",
    "Standing",
    "Stream",
    "group_of",
    "is_local",
    "open_peer_record",
    "pump_frames",
    "read_frame",
    "sign_peer_record",
    "write_frame",
]
