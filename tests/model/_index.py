"""A package index on the loopback: the simple API and wheels by range, with a download that can be made to stall."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def wheel_bytes(content: bytes) -> bytes:
    """A wheel that carries one file, not compressed."""
    out = io.BytesIO()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tiny_weights/model.bin", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()


class Index:
    """What it serves and what it was asked for."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.named_hash = hashlib.sha256(wheel).hexdigest()
        self.url = ""
        self.asked: list[str] = []  #: the range of each download that is not pip's own; empty for all of it
        self.stall_after = 0  #: bytes after which a download stops until :attr:`stalled` is let go; 0 for never
        self.drop_after = 0  #: bytes after which a connection is closed
        self.refuse = 0  #: status for downloads that are not pip's own
        self.stalled = threading.Event()
        self.go_on = threading.Event()


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if self.path.startswith("/simple/tiny-weights/"):
                page = f'<!DOCTYPE html><a href="/files/{WHEEL}#sha256={index.named_hash}">{WHEEL}</a>'.encode()
                self._send(200, page, {"Content-Type": "text/html"}, body=body)
            elif self.path == f"/files/{WHEEL}":
                self._wheel(body=body)
            else:
                self._send(404, b"", {}, body=body)

        def _wheel(self, *, body: bool) -> None:
            ours = "httpx" in self.headers.get("User-Agent", "")
            if ours and index.refuse:
                self._send(index.refuse, b"", {}, body=body)
                return
            asked = self.headers.get("Range", "")
            if ours:
                index.asked.append(asked)
            if not asked:
                self._send(200, index.wheel, {"Accept-Ranges": "bytes"}, body=body, ours=ours)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(index.wheel)
            if start >= len(index.wheel):
                self._send(416, b"", {}, body=body)
                return
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(index.wheel)}"}
            self._send(206, index.wheel[start:end], headers, body=body, ours=ours)

        def _send(
            self, status: int, content: bytes, headers: dict[str, str], *, body: bool, ours: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            if ours and index.drop_after:
                self.wfile.write(content[: index.drop_after])
                self.close_connection = True
                return
            if ours and index.stall_after:
                self.wfile.write(content[: index.stall_after])
                self.wfile.flush()
                index.stalled.set()
                index.go_on.wait(60)
                self.close_connection = True
                return
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        try:
            yield index
        finally:
            index.go_on.set()
            server.shutdown()
            thread.join()
