"""The task log (SRS-NODE-06): a line from the dispatch on, for every attempt, and its hashes can be checked."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import trio

from owm.errors import OwmError
from owm.store import Retention
from owm.tasks import InferenceTask
from owm.tasks._events import Completed, Started, TokenEvent
from owm.tasks._receipts import input_hash
from owm.tasks._types import EmbedTask
from owm.tasks.errors import NoWorkers, TaskFailed
from tests.tasks.test_requests import ask, question, whole
from tests.tasks.world import CountingEngine, world


async def test_who_has_the_input_can_check_its_hash_on_both_sides(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        task = question(5)
        _, completed, _ = await ask(made, task)
        await trio.sleep(1)
        ours = await made.store.task(completed.task, "requester")
        theirs = await made.workers[0].store.task(completed.task, "worker")
        assert ours is not None and theirs is not None
        assert len(ours.salt) == 32 and ours.salt == theirs.salt
        assert ours.input_hash == theirs.input_hash == input_hash(ours.salt, task)
        assert ours.input_hash != input_hash(ours.salt, question(6))


async def test_kept_contents_are_what_the_hashes_are_of(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        for store in (made.store, made.workers[0].store):
            store.retention = Retention(contents=True)
        _, completed, _ = await ask(made, question(5))
        embedded = await made.requester.embed(["one", "two"])
        await trio.sleep(1)
        for store, role in ((made.store, "requester"), (made.workers[0].store, "worker")):
            for task_id in (completed.task, embedded.completed.task):
                entry = await store.task(task_id, role)
                assert entry is not None
                for name in (entry.input_hash, entry.output_hash):
                    kept = await store.content(name)
                    assert kept is not None and hashlib.sha256(kept.data).digest() == name
            entry = await store.task(completed.task, role)
            assert entry is not None
            answer = await store.content(entry.output_hash)
            assert answer is not None and answer.text == whole(5)
            sent = await store.content(entry.input_hash)
            assert sent is not None
            body = msgspec.msgpack.decode(sent.data[len(b"owm-task-input/1") + 32 :], type=InferenceTask | EmbedTask)
            assert body == question(5)


async def test_nothing_of_an_input_is_kept_unless_asked_for(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        _, completed, _ = await ask(made, question(5))
        for store, role in ((made.store, "requester"), (made.workers[0].store, "worker")):
            entry = await store.task(completed.task, role)
            assert entry is not None
            assert await store.content(entry.input_hash) is None and await store.content(entry.output_hash) is None


async def test_a_requester_that_dies_leaves_a_line_which_the_next_start_ends(autojump_clock: object) -> None:
    async with world(workers=1, gap=1.0) as made, made.requester.inference(question(10)) as events:
        async for event in events:
            if isinstance(event, TokenEvent):
                break
        (line,) = await made.store.tasks()
        assert (line.role, line.finished) == ("requester", None)
        assert line.peer == bytes(made.workers[0].identity.peer_id) and line.input_hash and line.salt
        # What a crash would leave, as the next start finds it.
        assert await made.store.abandon_unfinished(made.clock.time()) == 1
        (line,) = await made.store.tasks()
        assert (line.state, line.error) == ("failed", "interrupted")


async def test_every_attempt_has_its_line_and_its_end(autojump_clock: object) -> None:
    async with world(workers=2, gap=0.1) as made:
        started: list[Started] = []
        completed = None
        async with made.requester.inference(question(20)) as events:
            async for event in events:
                if isinstance(event, Started):
                    started.append(event)
                elif isinstance(event, TokenEvent) and event.id == 5 and len(started) == 1:
                    made.by_id(started[0].worker).scope.cancel()
                elif isinstance(event, Completed):
                    completed = event
        assert completed is not None and len(started) == 2
        lost, done = sorted(await made.store.tasks(), key=lambda line: line.attempt)
        assert (lost.state, done.state) == ("failed", "done")
        assert (lost.attempt, done.attempt) == (1, 2)
        assert lost.id == lost.job == done.job and done.id == completed.task != lost.id
        assert lost.error and lost.finished is not None and not done.error
        assert lost.peer == bytes(started[0].worker) and done.peer == bytes(started[1].worker)
        assert lost.finished <= done.created
        assert lost.salt != done.salt


async def test_a_refused_attempt_is_a_line_too(autojump_clock: object) -> None:
    async with world(workers=2) as made:
        await made.workers[0].worker.drain(0)
        for _ in range(4):
            await ask(made, question(3))
        states = {line.state for line in await made.store.tasks()}
        assert "done" in states
        refused = [line for line in await made.store.tasks() if line.state == "refused"]
        assert all("stopping" in line.error for line in refused) and refused
        sizes = len(await made.store.dispatches())
        assert sizes == len(await made.store.tasks()), "a line for each dispatch"


async def test_a_task_that_fails_everywhere_ends_with_the_reason(autojump_clock: object) -> None:
    engine = CountingEngine()
    engine.error = OwmError("broken")
    async with world(workers=0) as made:
        await made.add_worker(engine=engine)
        with pytest.raises((TaskFailed, NoWorkers)):
            await ask(made, question(3))
        lines = await made.store.tasks()
        assert lines and all(line.finished is not None and line.error for line in lines)
        assert all(line.state == "failed" for line in lines)
