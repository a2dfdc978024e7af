"""The bytes below a connection, read and written with as few turns of the event loop as the kernel allows.

trio's socket streams try, fail, wait and try again, with a checkpoint for each: three quarters of what a small message
costs. On a TCP socket we ask the kernel first and write at once what it takes; any other stream is used as it is.
"""

from __future__ import annotations

import os
from typing import Final

import trio

__all__ = ["Wire"]

_READ: Final = 65536


class Wire:
    """Owns nothing: the connection closes ``stream``. Every error of the socket is a trio.BrokenResourceError."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._dry = True  # the last read emptied the socket

    async def receive(self) -> bytes:
        """What has come, 64 KiB at most; empty at the end."""
        if self._socket is None:
            return bytes(await self._stream.receive_some(_READ))
        while True:
            if self._dry:
                await trio.lowlevel.wait_readable(self._socket)
            else:
                await trio.lowlevel.checkpoint()
            try:
                data = os.read(self._socket.fileno(), _READ)
            except (BlockingIOError, InterruptedError):
                self._dry = True
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._dry = len(data) < _READ
            return data

    def send_some(self, data: bytes) -> int:
        """Write what is taken without waiting; returns how many bytes that was. Errors show in :meth:`send_all`."""
        if self._socket is None:
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except OSError:
            return 0

    async def send_all(self, data: bytes) -> None:
        """Write all; the caller is the only one who writes meanwhile."""
        sent = self.send_some(data)
        if sent == len(data):
            await trio.lowlevel.checkpoint()
        else:
            await self._stream.send_all(memoryview(data)[sent:])
