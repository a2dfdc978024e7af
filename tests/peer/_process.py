"""A peer as a process, and what it says of itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio


class PeerProcess:
    """``owm peer`` in a folder of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    async def health_url(self) -> str:
        """Where it tells of itself, from its log: known before anything else runs."""
        with trio.fail_after(20):
            while True:
                found = re.search(r'"health": ?"([^"]+)"', self.log())
                if found is not None:
                    return found[1]
                assert self._process.poll() is None, self.log()
                await trio.sleep(0.02)

    async def running(self) -> dict[str, Any]:
        """Its peer.json, once there is one."""
        with trio.fail_after(30):
            while not (self.folder / "peer.json").exists():
                assert self._process.poll() is None, self.log()
                await trio.sleep(0.02)
        found: dict[str, Any] = json.loads((self.folder / "peer.json").read_text(encoding="utf-8"))
        return found

    async def ended(self, within: float) -> int:
        """Its exit code."""
        with trio.fail_after(within):
            while (code := self._process.poll()) is None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        return code


@asynccontextmanager
async def peer_process(folder: Path, *arguments: str, **settings: str) -> AsyncIterator[PeerProcess]:
    """Run one; ``settings`` are environment variables. It is killed at the end of the block if it still runs."""
    await trio.Path(folder).mkdir()
    command = [sys.executable, "-m", "owm", "peer", "--data-dir", str(folder), "--network", "devnet"]
    command += ["--listen", "127.0.0.1:0", "--health-port", "0", "--log-format", "json", *arguments]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **settings}
        )
    try:
        yield PeerProcess(folder, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def get(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=5) as client:
        return await client.get(path)
