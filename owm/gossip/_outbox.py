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
    """The queue of one peer and what empties it.

    Args:
        capacity: bytes that may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in Priority)
        self._waiting = 0
        self._filled = trio.Event()
        self.dropped = 0  #: RPCs that were not sent

    def put(self, rpc: Rpc, priority: Priority) -> bool:
        """Queue an RPC, dropping less important ones to make room; False when it was dropped itself."""
        data = encode_frame(rpc.encode())
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
        while True:
            await self._filled.wait()
            batch: list[bytes] = []
            size = 0
            for queue in self._queues:
                while queue and size < _BATCH:
                    batch.append(queue.popleft())
                    size += len(batch[-1])
            self._waiting -= size
            if not self._waiting:
                self._filled = trio.Event()
            with trio.move_on_after(patience) as scope:
                await stream.send(b"".join(batch))
            if scope.cancelled_caught:
                raise StreamReset(f"{stream.remote.short} took nothing for {patience:g} s")
