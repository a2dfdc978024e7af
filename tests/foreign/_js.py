"""A js-libp2p peer: ``peer.mjs`` under the packaged Node, driven by JSON lines."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import trio

from owm.identity import PeerId
from tests.foreign._install import HERE, JS_DIR, NODE


class JsPeer:
    """One running peer. Use ``async with JsPeer.running() as peer``; failures come as RuntimeError."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._next = 0
        self._writing = trio.Lock()
        self._ready = trio.Event()
        self.peer_id: PeerId
        self.addresses: tuple[str, ...] = ()
        self._messages_in, self.messages = trio.open_memory_channel[dict[str, str]](10_000)

    @classmethod
    @asynccontextmanager
    async def running(
        cls, *, dht: str = "/ipfs/kad/1.0.0", echo: Sequence[str] = (), start_timeout: float = 30.0
    ) -> AsyncIterator[Self]:
        shutil.copy(HERE / "peer.mjs", JS_DIR / "peer.mjs")
        options = {"seed": base64.b64encode(os.urandom(32)).decode(), "dht": dht, "echo": list(echo)}
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [str(NODE), "peer.mjs", json.dumps(options)],
                cwd=JS_DIR,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            peer = cls(process)
            try:
                nursery.start_soon(peer._read)
                with trio.fail_after(start_timeout):
                    await peer._ready.wait()
                yield peer
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()

    @property
    def address(self) -> str:
        """The listening address, without the peer id."""
        return self.addresses[0].split("/p2p/")[0]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        buffer = b""
        async for chunk in self._process.stdout:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.peer_id = PeerId.parse(message["peer"])
            self.addresses = tuple(message["addresses"])
            self._ready.set()
        elif "topic" in message:
            self._messages_in.send_nowait(message)
        else:
            event, box = self._waiting.pop(message["id"])
            box.append(message)
            event.set()

    async def do(self, action: str, **fields: Any) -> Any:
        """Run one of the actions in ``peer.mjs``; binary fields are given as bytes."""
        assert self._process.stdin is not None
        self._next += 1
        number = self._next
        event, box = self._waiting[number] = (trio.Event(), [])
        packed = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in fields.items()}
        async with self._writing:
            await self._process.stdin.send_all(json.dumps({"id": number, "do": action, **packed}).encode() + b"\n")
        await event.wait()
        if "error" in box[0]:
            raise RuntimeError(f"js-libp2p: {box[0]['error']}")
        return box[0]["ok"]
