"""Servers of OpenAI's dialect: llama.cpp's own as a process, and one that says what a test wants."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token

KEY = "a-secret-for-the-server"
QUESTION = (ChatMessage("user", "What is the capital of France?"),)


@contextmanager
def llama_server(*more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    card = SHIPPED["smollm2-135m-instruct"]
    cache.pull(card)
    weights = next((cache.folder / card.id).glob("*.gguf"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.model._llama_server", str(weights), KEY, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "llama.cpp's server did not start"
        yield url, process
    finally:
        process.kill()
        process.wait()


def settings(url: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> ModelSettings:
    monkeypatch.setenv("TEST_ENGINE_KEY", KEY)
    base = {
        "engine": "openai",
        "url": f"{url}/v1",
        "api_key_env": "TEST_ENGINE_KEY",
        "chat": "llama-server",
        "embedding": "",
    }
    return ModelSettings(**{**base, **changes})  # type: ignore[arg-type]


async def answer(engine: Engine, **changes: object) -> tuple[list[Token], Done]:
    tokens: list[Token] = []
    request = GenerateRequest(**{"messages": QUESTION, "max_tokens": 16, "temperature": 0.0, **changes})  # type: ignore[arg-type]
    async with engine.generate(request) as items:
        async for item in items:
            if isinstance(item, Done):
                return tokens, item
            tokens.append(item)
    raise AssertionError("the answer had no end")


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


WORD = event(choices=[{"delta": {"content": "word "}}])


MODELS = json.dumps({"data": [{"id": "llama-server"}, {"id": "vectors"}]}).encode()


class Scripted:
    """A server that answers every chat and every embedding with ``parts``, and lists ``models``."""

    def __init__(self, parts: Iterable[bytes], status: int, head: bytes, models: bytes) -> None:
        self.parts = parts
        self.status = status
        self.head = head
        self.models = models
        self.hold = False  #: say nothing after the parts, and do not end
        self.away = False  #: drop every connection
        self.sent = 0  #: bytes of the parts that were taken
        self.looked = 0  #: how often the models were asked for
        self.asked = 0  #: how often anything else was
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        if self.away:
            return
        request = b""
        while b"\r\n\r\n" not in request or (request.startswith(b"POST") and not request.endswith(b"}")):
            request += await stream.receive_some(65536)
        if request.startswith(b"GET"):
            self.looked += 1
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.models) + self.models)
            return
        self.asked += 1
        await stream.send_all(b"HTTP/1.1 %d X\r\nConnection: close\r\n%s\r\n" % (self.status, self.head))
        try:
            for part in self.parts:
                await stream.send_all(part)
                self.sent += len(part)
            if self.hold:
                await trio.sleep_forever()
        except trio.BrokenResourceError:
            return  # the worker has heard enough

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            await self.serve(stream)


@asynccontextmanager
async def scripted(
    parts: Iterable[bytes] = (), status: int = 200, head: bytes = b"", models: bytes = MODELS
) -> AsyncIterator[Scripted]:
    server = Scripted(parts, status, head, models)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.handle, 0, host="127.0.0.1"))
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()
