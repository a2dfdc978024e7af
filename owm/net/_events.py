"""Connection events to any number of subscribers, none of which can hold up the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog
import trio

from owm.net._interface import NetworkEvent

__all__ = ["EventHub"]

_log = structlog.get_logger(__name__)
_BACKLOG: Final = 4096


class EventHub:
    """Publishes without waiting. A subscriber that falls thousands of events behind has its channel closed."""

    def __init__(self) -> None:
        self._subscribers: list[trio.MemorySendChannel[NetworkEvent]] = []

    def subscribe(self, first: Iterable[NetworkEvent]) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """A new channel that begins with ``first``."""
        known = list(first)
        send, receive = trio.open_memory_channel[NetworkEvent](_BACKLOG + len(known))
        for event in known:
            send.send_nowait(event)
        self._subscribers.append(send)
        return receive

    def publish(self, event: NetworkEvent) -> None:
        for send in list(self._subscribers):
            try:
                send.send_nowait(event)
            except trio.BrokenResourceError:
                self._subscribers.remove(send)
            except trio.WouldBlock:
                _log.warning("a subscriber does not read its connection events and gets no more", backlog=_BACKLOG)
                send.close()
                self._subscribers.remove(send)

    def close(self) -> None:
        """End all subscriptions: their channels run dry and then end."""
        for send in self._subscribers:
            send.close()
        self._subscribers.clear()
