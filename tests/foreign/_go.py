"""A go-libp2p peer: the daemon ``p2pd``, controlled over its unix socket with length-prefixed protobuf."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import trio

from owm.identity import PeerId
from tests.foreign._install import GO_DAEMON, GO_MESSAGES


def _messages() -> Any:
    spec = importlib.util.spec_from_file_location("p2pd_pb2", GO_MESSAGES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Control:
    """One connection to the daemon."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, message: Any) -> None:
        body = message.SerializeToString()
        size, head = len(body), bytearray()
        while size > 0x7F:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        head.append(size)
        await self.stream.send_all(bytes(head) + body)

    async def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError("the daemon closed its control socket")
            self._buffer += chunk
        out = bytes(self._buffer[:size])
        del self._buffer[:size]
        return out

    async def take_some(self) -> bytes:
        """Whatever comes next of a stream's raw bytes; empty at the end."""
        if self._buffer:
            out = bytes(self._buffer)
            self._buffer.clear()
            return out
        return bytes(await self.stream.receive_some(65536))

    async def receive(self, cls: Any) -> Any:
        size = shift = 0
        while True:
            (byte,) = await self.take(1)
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        return cls.FromString(await self.take(size))


class GoPeer:
    """One running daemon. Use ``async with GoPeer.running() as peer``."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._socket = folder / "control.sock"
        self._folder = folder
        self._pb = _messages()
        self.process = process
        self.peer_id: PeerId
        self.addresses: tuple[bytes, ...] = ()  # binary multiaddrs
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, *extra: str, start_timeout: float = 20.0) -> AsyncIterator[Self]:
        with tempfile.TemporaryDirectory(prefix="go-peer-") as name:
            folder = Path(name)
            process = subprocess.Popen(  # noqa: ASYNC220 - the daemon must outlive trio's worker threads
                [
                    str(GO_DAEMON),
                    "-listen",
                    f"/unix{folder}/control.sock",
                    "-hostAddrs",
                    "/ip4/127.0.0.1/tcp/0",
                    "-dhtServer",
                    "-pubsub",
                    "-relay=false",
                    "-forceReachabilityPublic",
                    "-tls=false",
                    "-quic=false",
                    *extra,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            peer = cls(folder, process)
            try:
                with trio.fail_after(start_timeout):
                    await peer._identify()
                yield peer
            finally:
                process.kill()
                await trio.to_thread.run_sync(process.wait)

    async def _identify(self) -> None:
        while not self._socket.exists():  # noqa: ASYNC110 - a file that another process makes
            await trio.sleep(0.02)
        while True:
            try:
                answer = (await self._call(self._pb.Request(type=self._pb.Request.IDENTIFY))).identify
                break
            except OSError:  # bound, and not listening yet
                await trio.sleep(0.02)
        self.peer_id = PeerId(answer.id)
        self.addresses = tuple(answer.addrs)
        # /ip4 is code 4 with 4 bytes, /tcp is code 6 with a big-endian port.
        self.port = next(
            int.from_bytes(a[6:8], "big") for a in self.addresses if a[:1] == b"\x04" and a[5:6] == b"\x06"
        )

    @property
    def address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    async def _open(self) -> _Control:
        return _Control(await trio.open_unix_socket(str(self._socket)))

    async def _call(self, request: Any) -> Any:
        control = await self._open()
        async with control.stream:
            await control.send(request)
            return self._checked(await control.receive(self._pb.Response))

    def _checked(self, answer: Any) -> Any:
        if answer.type != self._pb.Response.OK:
            raise RuntimeError(f"go-libp2p: {answer.error.msg}")
        return answer

    async def connect(self, peer: PeerId, port: int) -> None:
        address = b"\x04\x7f\x00\x00\x01\x06" + port.to_bytes(2, "big")
        request = self._pb.Request(type=self._pb.Request.CONNECT)
        request.connect.peer = bytes(peer)
        request.connect.addrs.append(address)
        request.connect.timeout = 10
        await self._call(request)

    async def peers(self) -> list[PeerId]:
        answer = await self._call(self._pb.Request(type=self._pb.Request.LIST_PEERS))
        return [PeerId(p.id) for p in answer.peers]

    async def known_addresses(self, peer: PeerId) -> set[str]:
        """Where a connected peer can be dialled, as the daemon remembers it: IPv4 and TCP only."""
        found = set()
        for answer in await self.dht("FIND_PEER", peer=bytes(peer)):
            for a in answer.peer.addrs:
                if a[:1] == b"\x04" and a[5:6] == b"\x06":
                    found.add(f"/ip4/{'.'.join(map(str, a[1:5]))}/tcp/{int.from_bytes(a[6:8], 'big')}")
        return found

    @asynccontextmanager
    async def open_stream(self, peer: PeerId, protocol: str) -> AsyncIterator[_Control]:
        """A raw stream to ``peer``: bytes written to ``.stream`` go there, ``take`` and ``take_some`` read."""
        request = self._pb.Request(type=self._pb.Request.STREAM_OPEN)
        request.streamOpen.peer = bytes(peer)
        request.streamOpen.proto.append(protocol)
        request.streamOpen.timeout = 10
        control = await self._open()
        async with control.stream:
            await control.send(request)
            self._checked(await control.receive(self._pb.Response))
            yield control

    @asynccontextmanager
    async def serving_echo(self, protocol: str) -> AsyncIterator[None]:
        """Register a handler in the daemon that sends back what it gets."""
        path = self._folder / "echo.sock"
        listeners = [trio.SocketListener(await _bound_unix(path))]

        async def echo(stream: trio.SocketStream) -> None:
            control = _Control(stream)
            async with stream:
                await control.receive(self._pb.StreamInfo)
                with suppress(trio.BrokenResourceError, EOFError):
                    while chunk := await control.take_some():
                        await stream.send_all(chunk)

        request = self._pb.Request(type=self._pb.Request.STREAM_HANDLER)
        request.streamHandler.addr = b"\x90\x03" + bytes([len(str(path))]) + str(path).encode()
        request.streamHandler.proto.append(protocol)
        request.streamHandler.balanced = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, listeners)
            await self._call(request)
            yield
            nursery.cancel_scope.cancel()

    async def dht(self, kind: str, **fields: Any) -> list[Any]:
        """One DHT request, such as ``dht("FIND_PEER", peer=...)``; returns the values of a streamed answer."""
        request = self._pb.Request(type=self._pb.Request.DHT)
        request.dht.type = self._pb.DHTRequest.Type.Value(kind)
        for name, value in fields.items():
            setattr(request.dht, name, value)
        control = await self._open()
        async with control.stream:
            await control.send(request)
            answer = self._checked(await control.receive(self._pb.Response))
            if not answer.HasField("dht"):
                return []
            if answer.dht.type != self._pb.DHTResponse.BEGIN:
                return [answer.dht]
            found = []
            while (part := await control.receive(self._pb.DHTResponse)).type != self._pb.DHTResponse.END:
                found.append(part)
            return found

    async def publish(self, topic: str, data: bytes) -> None:
        request = self._pb.Request(type=self._pb.Request.PUBSUB)
        request.pubsub.type = self._pb.PSRequest.PUBLISH
        request.pubsub.topic = topic
        request.pubsub.data = data
        await self._call(request)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.MemoryReceiveChannel[Any]]:
        """The topic's messages, as the daemon's ``PSMessage``."""
        request = self._pb.Request(type=self._pb.Request.PUBSUB)
        request.pubsub.type = self._pb.PSRequest.SUBSCRIBE
        request.pubsub.topic = topic
        control = await self._open()
        send, receive = trio.open_memory_channel[Any](10_000)

        async def pump() -> None:
            while True:
                await send.send(await control.receive(self._pb.PSMessage))

        async with control.stream, trio.open_nursery() as nursery:
            await control.send(request)
            self._checked(await control.receive(self._pb.Response))
            nursery.start_soon(pump)
            yield receive
            nursery.cancel_scope.cancel()


async def _bound_unix(path: Path) -> trio.socket.SocketType:
    socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await socket.bind(str(path))
    socket.listen(64)
    return socket
