"""The engine process: ``python -m owm.model.engine_main``, started by :mod:`owm.model._process` and by nobody else.

It reads its settings as JSON from the command line and messages from standard input, and dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from owm.model._core_frames import FrameReader, pack
from owm.model._jobs import Jobs

__all__ = ["main"]

_Queue = SimpleQueue[tuple[int, Callable[[], None]]]


def _die_with_parent() -> None:
    """Have the kernel kill us when the parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ["OWM_PARENT"]):
        os._exit(1)


class _Output:
    """Frames to the parent, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        data = memoryview(pack(message))
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


def _answer(out: _Output, number: int, work: Callable[[], None]) -> None:
    """Run one job; whatever it raises becomes an error message, never a dead thread."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the parent must hear of every failure
        code = getattr(error, "code", "failed")
        out.send(id=number, error=code, message=str(error)[:500])


def main() -> None:
    """Serve until standard input ends."""
    _die_with_parent()
    output = _Output(os.dup(1))
    os.dup2(2, 1)  # a stray print cannot corrupt frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    settings = json.loads(sys.argv[1])
    limit = settings["memory_limit_mib"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OPENBLAS_NUM_THREADS"] = str(settings["threads"])
    os.environ["GGML_NO_BACKTRACE"] = "1"

    from owm.model._llama_child import Llama  # only now: the limits and variables must be set first

    try:
        llama = Llama(settings)
        embedder = None
        if settings.get("embedding"):
            from owm.model._minilm import MiniLM

            embedder = MiniLM(settings["embedding"]["weights"], settings["embedding"]["tokenizer"])
    except Exception as error:  # noqa: BLE001 - said to the parent, which shows it to the operator
        output.send(failed=str(error)[:500])
        sys.exit(1)
    jobs = Jobs()
    generations, embeddings, counts = _Queue(), _Queue(), _Queue()

    def serve(queue: _Queue) -> None:
        while True:
            number, work = queue.get()
            if jobs.is_cancelled(number):
                output.send(id=number, error="cancelled", message="cancelled before it began")
            else:
                _answer(output, number, work)
            jobs.end(number)

    for queue in (*[generations] * settings["slots"], embeddings, counts):
        threading.Thread(target=serve, args=(queue,), daemon=True).start()
    output.send(ready=True, template_sha256=llama.template_sha256)

    def handle(message: dict[str, Any]) -> None:
        number = message.get("id", 0)

        def cancelled() -> bool:
            return jobs.is_cancelled(number)

        def begin(queue: _Queue, work: Callable[[], None]) -> None:
            jobs.begin(number)
            queue.put((number, work))

        match message["op"]:
            case "generate":
                begin(generations, lambda: llama.generate(message, partial(output.send, id=number), cancelled))
            case "cancel":
                jobs.cancel(number)
            case "count":
                begin(counts, lambda: output.send(id=number, count=llama.count(message["messages"])))
            case "embed" if embedder is not None:
                begin(embeddings, lambda: output.send(id=number, **embedder.answer(message["texts"], cancelled)))
            case _:
                output.send(id=number, error="invalid", message=f"this engine does not {message['op']}")

    reader = FrameReader()
    while data := os.read(0, 1 << 16):
        for message in reader.feed(data):
            handle(message)
    llama.close()
    os._exit(0)


if __name__ == "__main__":
    main()
