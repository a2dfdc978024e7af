"""What waits to be sent to one peer: bounded, and when it is full the least important goes first."""

from __future__ import annotations

from collections import deque

import trio

from owm.gossip._core_state import Priority
from owm.gossip._core_wire import Rpc
from owm.net import Stream
from owm.net._core_frames import encode_frame
from owm.net.errors import StreamReset

__all__ = ["Outbox"]

_BATCH = 64 * 1024


class Outbox:
    """The queue of one peer and what empties it. While nothing waits, RPCs go straight to the stream.

    Args:
        capacity: bytes that may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in Priority)
        self._waiting = 0
        self._filled = trio.Event()
        self._stream: Stream | None = None  # while nothing is being written to it
        self.dropped = 0  #: RPCs that were not sent

    def put(self, rpc: Rpc, priority: Priority) -> bool:
        """Send or queue an RPC, dropping less important ones to make room; False when it was dropped itself."""
        data = encode_frame(rpc.encode())
        if not self._waiting and self._stream is not None and self._stream.send_nowait(data):
            return True
        for lower in range(len(self._queues) - 1, priority, -1):
            queue = self._queues[lower]
            while queue and self._waiting + len(data) > self._capacity:
                self._waiting -= len(queue.pop())
                self.dropped += 1
        if self._waiting + len(data) > self._capacity:
            self.dropped += 1
            return False
        self._queues[priority].append(data)
        self._waiting += len(data)
        self._filled.set()
        return True

    async def drain(self, stream: Stream, patience: float) -> None:
        """Write to ``stream`` for ever, the important first and many RPCs at a time.

        Raises:
            StreamReset: it broke, or took nothing for ``patience`` seconds.
        """
        try:
            while True:
                if not self._waiting:
                    self._stream = stream
                    self._filled = trio.Event()
                await self._filled.wait()
                self._stream = None
                with trio.move_on_after(patience) as scope:
                    await stream.send(self._batch())
                if scope.cancelled_caught:
                    raise StreamReset(f"{stream.remote.short} took nothing for {patience:g} s")
        finally:
            self._stream = None

    def _batch(self) -> bytes:
        batch: list[bytes] = []
        size = 0
        for queue in self._queues:
            while queue and size < _BATCH:
                batch.append(queue.popleft())
                size += len(batch[-1])
        self._waiting -= size
        return b"".join(batch)
