"""Frames out of a stream: at once where that goes, and otherwise in turn as the peer takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from owm.net import Stream
from owm.net._core_frames import encode_frame
from owm.net.errors import NetworkError, StreamReset

__all__ = ["Sender", "Spawn"]

Spawn = Callable[[Callable[[], Awaitable[None]]], None]

_PATIENCE: Final = 120.0  # seconds in which the peer must take what waits


class Sender:
    """The sending side of a stream that is read by :func:`owm.net.pump_frames`.

    Args:
        spawn: starts a task, which is needed only while the peer takes less than we send.
        capacity: bytes that may wait for the peer.
        broken: called when the stream broke, or took nothing for two minutes, while something waited.
    """

    def __init__(self, stream: Stream, spawn: Spawn, capacity: int, broken: Callable[[], None]) -> None:
        self._stream = stream
        self._spawn = spawn
        self._capacity = capacity
        self._broken = broken
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._done = trio.Event()
        self._done.set()

    def put(self, payload: bytes) -> None:
        """Send one frame, now or in turn; raises StreamReset when too much waits already."""
        frame = encode_frame(payload)
        if not self._waiting and self._stream.send_nowait(frame):
            return
        if self._size + len(frame) > self._capacity:
            raise StreamReset(f"{self._stream.remote.short} does not take what it asked for")
        self._waiting.append(frame)
        self._size += len(frame)
        if self._done.is_set():
            self._done = trio.Event()
            self._spawn(self._drain)

    async def finish(self) -> None:
        """Return once nothing waits any more, or the stream broke."""
        await self._done.wait()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                count, batch = len(self._waiting), b"".join(self._waiting)
                with trio.fail_after(_PATIENCE):
                    await self._stream.send(batch)
                self._size -= len(batch)
                for _ in range(count):  # only now: what is put meanwhile must not overtake
                    self._waiting.popleft()
        except (NetworkError, trio.TooSlowError):
            self._broken()
        finally:
            self._done.set()
