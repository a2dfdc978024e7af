"""Run as a program: writes to a store in forked children of which each ends before a later SQL statement than the last.

Prints a line of JSON for each child: before which statement it ended, whether it was through, what it had been told.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import trio

from owm.store import Content, Retention, Store, TaskEntry

RECEIPT = bytes(range(200)) * 10
RETENTION = Retention(contents=True)
LANES = 2
ROUNDS = 2


def content(name: str) -> Content:
    data = name.encode() * 50
    return Content(hashlib.sha256(data).digest(), data)


def line(name: str, role: str, state: str) -> TaskEntry:
    done = state == "done"
    return TaskEntry(
        id=name,
        role=role,
        type="inference",
        peer=b"p" * 38,
        state=state,
        input_hash=content(f"{name} in").hash,
        output_hash=content(f"{name} out").hash if done else b"",
        created=1.0,
        finished=2.0 if done else None,
        receipt=RECEIPT if done else None,
    )


async def write(store: Store, lane: int, told: Any) -> None:
    """All that is written in pieces which belong together; ``told`` gets what the store has acknowledged."""
    for number in range(ROUNDS):
        name = f"{lane}-{number}"
        told("sequence", [lane, await store.next_sequence(f"type {lane}", 0.0)])
        await store.log_task(line(name, "worker", "accepted"), content(f"{name} in"))
        told("worker", [name, "accepted"])
        entry = line(name, "requester", "offered")
        place = await store.append_dispatch(None, name.encode(), 1.0, entry, content(f"{name} in"))
        told("dispatch", [name, place])
        await store.add_dispatch_nodes([(8, 2 * number, b"a"), (8, 2 * number + 1, b"b")])
        await store.log_task(line(name, "worker", "done"), content(f"{name} out"))
        told("worker", [name, "done"])
        await store.replace(f"set {lane}", {key: b"%d" % number for key in (b"x", b"y", b"z")})
        told("set", [lane, number])


def child(path: Path, last: int, pipe: int) -> None:
    """Write until statement number ``last``, and end before it without a goodbye."""
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            os._exit(9)

    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]

    def told(kind: str, what: object) -> None:
        os.write(pipe, json.dumps([kind, what]).encode() + b"\n")

    async def main() -> None:
        async with Store(path, retention=RETENTION).running() as store, trio.open_nursery() as nursery:
            for lane in range(LANES):
                nursery.start_soon(write, store, lane, told)

    trio.run(main)
    os._exit(0)


def main(folder: Path) -> None:
    for last in range(1, 2000):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(out)
            child(folder / f"{last}.db", last, into)
        os.close(into)
        with os.fdopen(out, "rb") as pipe:
            told = [json.loads(text) for text in pipe.read().splitlines()]
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"last": last, "through": status == 0, "told": told}), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
