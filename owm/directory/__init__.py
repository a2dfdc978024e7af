"""The live view of the network: who is there, what they can do, how to reach them."""

from owm.directory._core_clocks import ClockComparison
from owm.directory._core_directory import DirectoryCore, DirectoryStatistics, Noted, Peer
from owm.directory._directory import Directory

__all__ = ["ClockComparison", "Directory", "DirectoryCore", "DirectoryStatistics", "Noted", "Peer"]
