"""A headless Chromium that a test starts itself and steers over a pipe (the DevTools protocol)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

__all__ = ["Page", "chromium", "chromium_missing"]

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


def chromium_missing() -> str:
    """Why no browser can be started here; empty when one can."""
    return "" if _program() else "no Chromium is installed: run `make browser`"


def _program() -> str:
    return next((found for name in _NAMES if (found := shutil.which(name))), "")


class Page:
    """One tab."""

    def __init__(self, send: trio.lowlevel.FdStream) -> None:
        self._send = send
        self._number = 0
        self._waiting: dict[int, tuple[trio.Event, list[dict[str, Any]]]] = {}
        self._session = ""
        self.errors: list[str] = []  #: what the page's scripts failed with

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol; its result."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        answered, answer = self._waiting[self._number] = (trio.Event(), [])
        await self._send.send_all(json.dumps(message).encode() + b"\0")
        with trio.fail_after(30):
            await answered.wait()
        (found,) = answer
        assert "error" not in found, found["error"]
        result: dict[str, Any] = found["result"]
        return result

    async def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Load a page in a tab of this size, and wait until its scripts have run."""
        if not self._session:
            target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
            found = await self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = found["sessionId"]
            await self.call("Runtime.enable")
            await self.call("Page.enable")
        await self.resize(width, height)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str, within: float = 15.0) -> None:
        """Wait until an expression holds in the page."""
        with trio.fail_after(within):
            while not await self.run(condition):  # noqa: ASYNC110
                await trio.sleep(0.02)

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    async def receive(self, stream: trio.lowlevel.FdStream) -> None:
        """Take what the browser says until it ends."""
        buffer = b""
        async for data in stream:
            *messages, buffer = (buffer + data).split(b"\0")
            for raw in messages:
                message = json.loads(raw)
                if message.get("method") == "Runtime.exceptionThrown":
                    self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
                elif "id" in message:
                    answered, answer = self._waiting.pop(message["id"])
                    answer.append(message)
                    answered.set()


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A browser with a profile of its own; it is gone at the end of the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(prefix="owm-chromium-", ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-extensions", "--hide-scrollbars"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # It reads commands from descriptor 3 and answers on 4.
        program = ["/bin/bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh", _program(), *flags]
        process = subprocess.Popen(  # noqa: ASYNC220
            program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "HOME": profile},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            async with (
                trio.lowlevel.FdStream(ours_out) as send,
                trio.lowlevel.FdStream(ours_in) as receive,
                trio.open_nursery() as nursery,
            ):
                page = Page(send)
                nursery.start_soon(page.receive, receive)
                yield page
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            process.wait()
