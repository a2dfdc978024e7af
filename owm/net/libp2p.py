"""The network over TCP. Importing this module imports libp2p (most of a second, 80 MB): only a running peer should."""

from owm.net._faults import Fault, FaultRule, Faults
from owm.net._libp2p import Libp2pNetwork
from owm.net._upkeep import KeepAlive

__all__ = ["Fault", "FaultRule", "Faults", "KeepAlive", "Libp2pNetwork"]
