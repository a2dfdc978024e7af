"""A gateway that is killed in the middle of a task leaves a trace of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from owm.store import Store

_GATEWAY = """
import logging, sys
from pathlib import Path
import structlog, trio
from owm.api import TokenText
from owm.model import ChatMessage, GenerateRequest
from owm.model.testing import StandInEngine
from tests.peer._peers import address, hub, peer, running, until

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

async def main():
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"], store=Path(sys.argv[1])))
        engine = StandInEngine(tokens=100, pace=0.2)
        await peers.start(peer(net, "worker", ["worker"], [address(gateway)], engine=engine))
        await until(lambda: len(gateway.directory.peers()) == 1)
        request = GenerateRequest(messages=(ChatMessage("user", "hello"),), max_tokens=100)
        async with gateway.backend.answer(request, timeout=60) as events:
            async for event in events:
                if isinstance(event, TokenText):
                    print("a token", flush=True)

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.attack("Z1")
def test_kill_9_on_a_gateway_leaves_the_task_that_it_had_dispatched(tmp_path: Path) -> None:
    """SRS-NODE-06. The line is there from the dispatch on, and the next start says how it ended."""
    path = tmp_path / "gateway.db"
    process = subprocess.Popen(
        [sys.executable, "-c", _GATEWAY, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "a token\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    async def check() -> None:
        async with Store(path).running() as store:
            (line,) = await store.tasks()
            assert (line.role, line.finished, line.attempt) == ("requester", None, 1)
            assert line.peer and line.input_hash and len(line.salt) == 32
            assert len(await store.dispatches()) == 1
            assert await store.abandon_unfinished(line.created + 5) == 1
            (line,) = await store.tasks()
            assert (line.state, line.error) == ("failed", "interrupted")

    trio.run(check)
