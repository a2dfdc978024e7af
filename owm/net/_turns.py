"""Waiting for our turn where our own quota with a peer is used up."""

from __future__ import annotations

from collections.abc import Callable

import trio

from owm.identity import PeerId
from owm.net.errors import TooManyStreams

__all__ = ["take_turn"]


async def take_turn(wait: float, refund: Callable[[], None], of: PeerId) -> None:
    """Wait as long as a reservation says; whoever is cancelled meanwhile gets it back.

    Args:
        wait: seconds, infinite where nothing was reserved.
        refund: gives the reservation back.
        of: with whom.

    Raises:
        TooManyStreams: nothing was reserved.
    """
    if wait == float("inf"):
        raise TooManyStreams(f"too much waits for its turn with {of.short}")
    try:
        await trio.sleep(wait)
    except BaseException:
        refund()
        raise
