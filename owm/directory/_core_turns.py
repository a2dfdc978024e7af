"""Who relays when: in turns of an hour, the same for everybody, and each turn's relays take over from the last one's.

Relays are found under keys of their turn, so that those of earlier turns, whom the DHT remembers for a day, are not
looked up. A turn's relays begin a few minutes before it and go on for a few minutes after it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["TURN", "Turns", "announced_turns", "topic_key", "turn_at"]

TURN: Final = 3600.0  #: seconds
_OVERLAP: Final = 300.0  # seconds, more than clocks may differ by and links take to be renewed
_GOLDEN: Final = 0.6180339887  # multiples of it fall evenly into every part of 0 to 1


def turn_at(now: float) -> int:
    """The turn at wall time ``now``, in seconds since the Unix epoch."""
    return int(now // TURN)


def announced_turns(now: float) -> tuple[int, ...]:
    """The turns under whose keys a subscriber is to be found: this one, and the next when it is about to begin."""
    this, soon = turn_at(now), turn_at(now + _OVERLAP)
    return (this,) if this == soon else (this, soon)


def topic_key(topic: str, turn: int) -> bytes:
    """The DHT key that a topic's subscribers provide in a turn."""
    return f"topic:{topic}:{turn}".encode()


class Turns:
    """One peer's turns. ``place`` is its own among all peers, from 0 to 1, as its id has it."""

    def __init__(self, place: float) -> None:
        self._place = place

    def begins(self, needed: float, now: float) -> bool:
        """Whether to begin relaying where a share ``needed`` of all peers has to."""
        return min(map(self._share, announced_turns(now))) <= needed

    def ends(self, needed: float, now: float) -> bool:
        """Whether to leave it to others; not at once where the number of peers varies a little."""
        return min(map(self._share, {turn_at(now - _OVERLAP), *announced_turns(now)})) > 1.25 * needed

    def _share(self, turn: int) -> float:
        """Our place in a turn; another one each time, or a few would carry most for ever."""
        return (self._place + turn * _GOLDEN) % 1.0
