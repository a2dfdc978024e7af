"""The bytes below a connection, read and written with as few turns of the event loop as the kernel allows.

trio's socket streams try, fail, wait and try again, with a checkpoint for each: three quarters of what a small message
costs. On a TCP socket we ask the kernel first and write at once what it takes; any other stream is used as it is.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from typing import Final

import trio

__all__ = ["READ", "Wire"]

READ: Final = 65536  #: bytes read at once
_OUTQ: Final = 0x5411 if sys.platform == "linux" else None  # SIOCOUTQ: what the other machine has not acknowledged yet


class Wire:
    """Owns nothing: the connection closes ``stream``. Every error of the socket is a trio.BrokenResourceError."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._dry = True  # the last read emptied the socket
        self.written = 0  #: bytes that the socket has taken

    async def receive(self, most: int = READ) -> bytes:
        """What has come, ``most`` bytes of it; empty at the end."""
        if self._socket is None:
            return bytes(await self._stream.receive_some(most))
        while True:
            if self._dry:
                await trio.lowlevel.wait_readable(self._socket)
            else:
                await trio.lowlevel.checkpoint()
            try:
                data = os.read(self._socket.fileno(), most)
            except (BlockingIOError, InterruptedError):
                self._dry = True
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._dry = len(data) < most
            return data

    def send_some(self, data: bytes) -> int:
        """Write what is taken without waiting; returns how many bytes that was. Errors show in :meth:`send_all`."""
        if self._socket is None:
            return 0
        try:
            sent = os.write(self._socket.fileno(), data)
        except OSError:
            return 0
        self.written += sent
        return sent

    async def send_all(self, data: bytes) -> None:
        """Write all; the caller is the only one who writes meanwhile."""
        left = self.send_some(data)
        if left == len(data):
            await trio.lowlevel.checkpoint()
            return
        if self._socket is None:
            await self._stream.send_all(data)
            self.written += len(data)
            return
        rest = memoryview(data)[left:]
        while rest:
            await trio.lowlevel.wait_writable(self._socket)
            try:
                sent = os.write(self._socket.fileno(), rest)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self.written += sent
            rest = rest[sent:]

    def delivered(self) -> int:
        """Of the bytes written, those that have reached the other machine, as far as this one can know."""
        if self._socket is None or _OUTQ is None:
            return self.written
        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _OUTQ, bytes(4)))
        except OSError:  # closed meanwhile
            return self.written
        return self.written - int(waiting)
