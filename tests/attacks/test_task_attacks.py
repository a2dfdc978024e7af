"""Attacks on the scheduling, the doing and the recording of work."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from owm.store import Store
from owm.tasks import Completed, InferenceTask, Message, Restart
from owm.tasks.errors import NoWorkers
from tests.tasks.world import CountingEngine, world


@pytest.mark.attack("F19")
async def test_a_dead_worker_leaves_the_schedule_when_its_lease_ends(autojump_clock: object) -> None:
    async with world(workers=2) as made:
        dead, alive = made.workers
        dead.scope.cancel()
        for _ in range(4):  # the living one goes on announcing itself, each 60 s
            made.directory.note(alive.manifest(int(made.clock.time() * 1000)))
            await trio.sleep(60)
        assert [peer.id for peer in made.directory.eligible("inference", paused=True)] == [alive.identity.peer_id]
        made.directory.expire()
        alive.scope.cancel()
        await trio.sleep(181)
        task = InferenceTask(messages=(Message("user", "anyone?"),))
        started = trio.current_time()
        with pytest.raises(NoWorkers):
            async with made.requester.inference(task) as events:
                async for _ in events:
                    pass
        assert trio.current_time() - started < 1  # nobody was dialled in vain


@pytest.mark.attack("F18")
async def test_a_straggler_is_replaced_within_its_deadline(autojump_clock: object) -> None:
    """A worker that accepts and then stalls is given up after 30 s and another one answers."""
    async with world() as made:
        await made.add_worker(engine=CountingEngine(gap=10_000))
        task = InferenceTask(messages=(Message("user", "quick"),), max_tokens=5)
        kinds: list[type] = []
        started = trio.current_time()
        async with made.requester.inference(task) as events:
            async for event in events:
                kinds.append(type(event))
                if len(made.workers) == 1:
                    await made.add_worker()
        assert kinds[-1] is Completed and Restart not in kinds
        assert 29 < trio.current_time() - started < 32


_WRITER = """
import sys, trio
from pathlib import Path
from owm.store import Store, TaskEntry
async def main():
    async with Store(Path(sys.argv[1])).running() as store:
        async def write(lane):
            number = 0
            while True:
                sequence = await store.next_sequence("receipt", 0.0)
                await store.log_task(TaskEntry(id=f"{lane}-{number}", role="worker", type="inference", peer=b"p" * 38,
                    state="done", created=float(number), finished=1.0, receipt=bytes(2000)))
                print(f"{lane}-{number} {sequence}", flush=True)
                number += 1
        async with trio.open_nursery() as nursery:
            for lane in range(4):
                nursery.start_soon(write, lane)
trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.attack("Z1")
@pytest.mark.parametrize("round_number", range(6))
def test_kill_9_while_writing_loses_nothing_that_was_acknowledged(tmp_path: Path, round_number: int) -> None:
    """SRS-NODE-06. Three kills at different moments on one file; every acknowledged line is there and whole."""
    path = tmp_path / "peer.db"
    acknowledged: set[str] = set()
    sequences: list[int] = []
    for kill in range(3):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(0.003 * (round_number * 3 + kill))
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        whole = [line.split() for line in lines if len(line.split()) == 2]
        acknowledged |= {line[0] for line in whole[:-1]}  # the last line may be cut
        sequences += [int(line[1]) for line in whole[:-1]]
    assert len(acknowledged) > 3
    assert len(set(sequences)) == len(sequences)

    async def check() -> None:
        async with Store(path).running() as store:
            found = {entry.id: entry for entry in await store.tasks(limit=1_000_000)}
            assert acknowledged <= set(found)
            assert all(entry.receipt == bytes(2000) for entry in found.values())
            assert await store.next_sequence("receipt", 0.0) > max(sequences)

    trio.run(check)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
