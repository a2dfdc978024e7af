"""Peers that others wrote: go-libp2p and js-libp2p, for interoperability tests and honest benchmarks.

``make foreign`` (part of ``make test``) installs both from package registries into ``.cache/foreign``.
"""

from tests.foreign._go import GoPeer
from tests.foreign._install import foreign_missing
from tests.foreign._js import JsPeer

__all__ = ["GoPeer", "JsPeer", "foreign_missing"]
