"""The requests in work: at most so many at once, each for at most so long; at the end they complete, or are cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from owm.api.errors import Busy, Stopping, TimedOut

__all__ = ["Work"]

_RETRY_STOPPING = 5  #: seconds; by then a restarted gateway, or another one, is there


class Work:
    """Places for requests in work.

    Args:
        most: requests at once.
        timeout: seconds for each.
    """

    def __init__(self, most: int, timeout: float) -> None:
        self._most = most
        self._timeout = timeout
        self._scopes: set[trio.CancelScope] = set()
        self._ended = trio.Event()
        self._cut = False
        self.stopping = False

    def __len__(self) -> int:
        return len(self._scopes)

    def check(self) -> None:
        """Raises Stopping once no new work is taken."""
        if self.stopping:
            raise Stopping(
                "the gateway is stopping and takes no new work; ask another one, or this one again in "
                f"{_RETRY_STOPPING} s",
                retry_after=_RETRY_STOPPING,
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place; what runs in the block is cancelled when its time is up, or when the gateway ends.

        Raises:
            Stopping: no new work is taken, or this piece was cut.
            Busy: all places are taken.
            TimedOut: it was not done in time.
        """
        self.check()
        if len(self._scopes) >= self._most:
            raise Busy("the gateway has as many requests in work as it can take; try again in 2 s", retry_after=2)
        scope = trio.CancelScope(deadline=trio.current_time() + self._timeout)
        self._scopes.add(scope)
        try:
            with scope:
                yield
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                self._ended.set()
        if scope.cancelled_caught:
            if self._cut:
                raise Stopping("the gateway is stopping and could not complete this; ask again", retry_after=5)
            raise TimedOut(f"this was not complete after {self._timeout:g} s; ask again, or for less at once")

    async def drain(self, grace: float) -> bool:
        """Take nothing new and wait for what runs, for up to ``grace`` seconds; then cut it.

        Returns:
            Whether all of it was completed.
        """
        self.stopping = True
        self._ended = trio.Event()
        with trio.move_on_after(grace):
            while self._scopes:
                await self._ended.wait()
                self._ended = trio.Event()
        if not self._scopes:
            return True
        self._cut = True
        for scope in list(self._scopes):
            scope.cancel()
        return False
