"""What runs on the streams that others open to one peer of a :class:`MemoryNetwork`."""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog
import trio

from owm.identity import PeerId
from owm.net._interface import Handler
from owm.net._memory_stream import MemoryStream
from owm.net.errors import NetworkError, StreamReset

__all__ = ["MemoryServer"]

_log = structlog.get_logger(__name__)
_POLITE: Final = 1.0


class MemoryServer:
    """The handlers, and how many streams each peer has open with each."""

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[Handler, int]] = {}
        self._protocols: tuple[str, ...] = ()
        self._control: set[str] = set()
        self._lasting: set[str] = set()
        self._serving: Counter[tuple[PeerId, str]] = Counter()

    @property
    def protocols(self) -> tuple[str, ...]:
        return self._protocols

    def handle(self, protocol: str, handler: Handler, max_streams: int, *, control: bool, lasting: bool) -> None:
        self._handlers[protocol] = (handler, max_streams)
        self._protocols = tuple(self._handlers)
        (self._control.add if control else self._control.discard)(protocol)
        (self._lasting.add if lasting else self._lasting.discard)(protocol)

    def speaks(self, protocol: str) -> bool:
        return protocol in self._handlers

    def is_control(self, protocol: str) -> bool:
        """Whether a protocol keeps us in the network."""
        return protocol in self._control

    def is_lasting(self, protocol: str) -> bool:
        """Whether streams of a protocol stay open as long as their connection."""
        return protocol in self._lasting

    def start(self, stream: MemoryStream, nursery: trio.Nursery) -> StreamReset | None:
        """Run the handler of a stream, or say why not."""
        handler, most = self._handlers[stream.protocol]
        key = (stream.remote, stream.protocol)
        if self._serving[key] >= most:
            return StreamReset("the peer takes no more streams of that protocol")
        self._serving[key] += 1
        nursery.start_soon(self._serve, handler, stream)
        return None

    async def _serve(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
            with trio.move_on_after(_POLITE):
                await stream.aclose()
        except Exception as error:  # noqa: BLE001 - whatever a handler does, the network goes on
            stream.reset()
            level = _log.debug if isinstance(error, NetworkError) else _log.exception
            level("a handler failed", protocol=stream.protocol, peer=stream.remote.short, error=repr(error))
        finally:
            key = (stream.remote, stream.protocol)
            self._serving[key] -= 1
            if not self._serving[key]:
                del self._serving[key]
