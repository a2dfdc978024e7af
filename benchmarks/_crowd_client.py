"""A crowd of clients in a process of its own: ``python -m benchmarks._crowd_client HOST PORT KEY COUNT``.

Each opens a connection of its own and reads one stream to its end. Plain sockets: an HTTP library would cost more than
the gateway that is measured. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import trio

_DEADLINE = 60.0


async def _one(host: str, port: int, key: str, number: int, found: dict[str, list[float]]) -> None:
    body = json.dumps({"query": f"request {number}", "max_tokens": 12}).encode()
    head = (
        f"POST /v1/query/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    first, received = 0.0, bytearray()
    try:
        with trio.fail_after(_DEADLINE):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(head.encode() + body)
                async for data in stream:
                    received += data
                    if not first and b"event: token" in received:
                        first = time.perf_counter() - began
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        received.clear()
    if first and b"event: done" in received and received.startswith(b"HTTP/1.1 200"):
        found["first"].append(first)
        found["whole"].append(time.perf_counter() - began)


async def _run(host: str, port: int, key: str, count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"first": [], "whole": []}
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(_one, host, port, key, number, found)
    return found


if __name__ == "__main__":
    print(json.dumps(trio.run(_run, sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
