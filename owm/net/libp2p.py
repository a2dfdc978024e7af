"""The network over TCP. Importing this module imports libp2p (most of a second, 80 MB): only a running peer should."""

from owm.net._faults import Fault, FaultRule, Faults
from owm.net._libp2p import Libp2pNetwork

__all__ = ["Fault", "FaultRule", "Faults", "Libp2pNetwork"]
