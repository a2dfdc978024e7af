"""Open World Model: a peer-to-peer network in which many models answer as one.

Importing this package loads nothing heavy; each part is imported where it is used.
"""

__version__ = "0.1.0"
