"""Requests over a network in memory, in virtual time, with real peers on both sides."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from owm.errors import TemporaryError, UsageError
from owm.identity import Identity
from owm.model import Done, GenerateRequest, Token
from owm.model.errors import PromptTooLong
from owm.net import NetworkLimits, write_frame
from owm.net.errors import DialFailed, StreamReset
from owm.tasks import (
    Completed,
    InferenceTask,
    Message,
    Restart,
    Started,
    TokenEvent,
    WorkerLimits,
    countersigned,
    verify_inclusion,
)
from owm.tasks.errors import ConsumerTooSlow, InvalidTask, NoWorkers, TaskFailed
from tests.tasks.world import CHAT, EMBEDDING, CountingEngine, World, world


def question(max_tokens: int = 10, text: str = "how far?", **more: object) -> InferenceTask:
    return InferenceTask(messages=(Message("user", text),), max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def whole(tokens: int) -> str:
    return "".join(f"w{number} " for number in range(tokens))


async def ask(made: World, task: InferenceTask) -> tuple[str, Completed, int]:
    """The answer as a consumer that obeys Restart sees it, and how many restarts there were."""
    text, restarts = "", 0
    async with made.requester.inference(task) as events:
        async for event in events:
            match event:
                case TokenEvent(text=piece):
                    text += piece
                case Restart():
                    text, restarts = "", restarts + 1
                case Completed():
                    return text, event, restarts
    raise AssertionError("no Completed")


async def test_an_answer_streams_and_is_proved(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        text, completed, restarts = await ask(made, question(12, seed=77))
        assert (text, restarts, completed.finish) == (whole(12), 0, "length")
        peer = made.workers[0]
        assert completed.worker == peer.identity.peer_id
        assert completed.details.completion_tokens == 12
        assert completed.details.seed == 77
        await trio.sleep(1)
        entry = await peer.store.task(completed.task, "worker")
        assert entry is not None and entry.state == "done" and entry.receipt == completed.receipt.envelope
        assert entry.countersignature is not None
        assert countersigned(completed.receipt.id, made.identity.peer_id, entry.countersignature)
        ours = await made.store.task(completed.task, "requester")
        assert ours is not None and ours.state == "done" and ours.output_hash == entry.output_hash != b""
        leaf = (await made.store.dispatches())[0]
        size, root = made.requester.log.head()
        assert size == 1 and verify_inclusion(leaf, 0, 1, await made.requester.log.inclusion(0, 1), root)


async def test_embeddings_come_back_in_order(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        texts = [f"text {number}" for number in range(100)]
        result = await made.requester.embed(texts)
        expected = await CountingEngine().embed(texts)
        assert result.vectors == expected.vectors
        assert result.completed.model == "hashes"


async def test_a_killed_worker_loses_no_task(autojump_clock: object) -> None:
    """After tokens were streamed there is one Restart, and the answer is whole and one worker's (SRS-SCHED-02)."""
    async with world(workers=2, gap=0.1) as made:
        text, seen, killed = "", [], None
        async with made.requester.inference(question(20)) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, TokenEvent):
                    text += event.text
                    if killed is None and event.id == 5:
                        killed = next(e.worker for e in seen if isinstance(e, Started))
                        made.by_id(killed).scope.cancel()
                elif isinstance(event, Restart):
                    text = ""
        assert text == whole(20)
        assert sum(isinstance(event, Restart) for event in seen) == 1
        completed = seen[-1]
        assert isinstance(completed, Completed) and completed.worker != killed and completed.attempts == 2


async def test_a_worker_lost_before_any_output_is_replaced_silently(autojump_clock: object) -> None:
    async with world(workers=2, gap=1.0) as made:
        seen = []
        async with made.requester.inference(question(3)) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, Started) and event.attempt == 1:
                    made.by_id(event.worker).scope.cancel()
        assert [type(event).__name__ for event in seen] == ["Started", "Started", *["TokenEvent"] * 3, "Completed"]


async def test_without_a_worker_there_is_one_clear_error(autojump_clock: object) -> None:
    async with world() as made:
        with pytest.raises(NoWorkers, match="no worker for inference"):
            await ask(made, question())


async def test_when_the_last_worker_dies_the_error_says_so(autojump_clock: object) -> None:
    async with world(workers=1, gap=0.1) as made:
        with pytest.raises(NoWorkers, match="is left"):
            async with made.requester.inference(question(50)) as events:
                async for event in events:
                    if isinstance(event, TokenEvent) and event.id == 5:
                        made.workers[0].scope.cancel()


async def test_leaving_the_block_frees_the_slot_within_a_second(autojump_clock: object) -> None:
    async with world(workers=1, gap=0.5) as made:
        async with made.requester.inference(question(1000)) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    break
        left = trio.current_time()
        await trio.sleep(1.0)
        peer = made.workers[0]
        assert peer.engine.active == 0 and peer.engine.left_at[-1] - left < 1.0
        assert peer.worker.statistics().busy == 0 and peer.worker.statistics().cancelled == 1
        assert (await peer.store.tasks())[0].state == "cancelled"


async def test_a_consumer_that_stops_reading_does_not_hold_a_worker(autojump_clock: object) -> None:
    async with world(workers=1, gap=0.001) as made:
        with pytest.raises(ConsumerTooSlow):
            async with made.requester.inference(question(5000), timeout=100) as events:
                await trio.sleep(20)
                assert made.workers[0].engine.active == 0
                async for _ in events:
                    pass


async def test_a_task_has_a_timeout(autojump_clock: object) -> None:
    """SRS-SCHED-02."""
    async with world(workers=1, gap=1.0) as made:
        started = trio.current_time()
        with pytest.raises(TaskFailed, match="5 s"):
            async with made.requester.inference(question(100), timeout=5) as events:
                async for _ in events:
                    pass
        assert 4.5 < trio.current_time() - started < 6
        await trio.sleep(1)
        assert made.workers[0].engine.active == 0


async def test_a_task_outside_its_schema_never_reaches_a_worker(autojump_clock: object) -> None:
    """SRS-NODE-07."""
    async with world(workers=1) as made:
        for bad in (
            question(0),
            question(10**6),
            question(temperature=-1.0),
            question(seed=2**80),
            question(text="\ud800"),
            question(top_p=0.0),
            question(seed=-1),
        ):
            with pytest.raises(InvalidTask):
                await ask(made, bad)
        assert made.workers[0].engine.prompts == []


async def test_a_thousand_requests_at_once_are_all_served(autojump_clock: object) -> None:
    """None is lost, and no worker ever runs more than its slots (SRS-SCHED-01)."""
    async with world(workers=3, gap=0.01, limits=WorkerLimits(slots=8, queue=8)) as made:
        answers: list[str] = []

        async def one() -> None:
            answers.append((await ask(made, question(5)))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(one)
        assert answers == [whole(5)] * 1000
        assert max(peer.engine.most_active for peer in made.workers) <= 8
        assert min(len(peer.engine.prompts) for peer in made.workers) > 200  # shared out
        assert made.scheduler.queued == made.scheduler.in_flight == 0
        assert made.requester.log.size == 1000 + sum(p.worker.statistics().refused for p in made.workers)


async def test_draining_completes_what_runs_and_refuses_the_rest(autojump_clock: object) -> None:
    """SRS-NODE-09."""
    async with world(workers=1, gap=0.1) as made:
        peer = made.workers[0]
        results: list[object] = []

        async def first() -> None:
            results.append((await ask(made, question(20)))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.sleep(0.5)
            nursery.start_soon(peer.worker.drain, 30.0)
            await trio.sleep(0.1)
            with pytest.raises(NoWorkers):
                await ask(made, question(1))
        assert results == [whole(20)]


async def test_peers_that_are_gone_are_not_dialled_for_ever(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        made.workers[0].scope.cancel()
        await trio.sleep(1)
        with pytest.raises(NoWorkers):
            await ask(made, question())
        with pytest.raises(DialFailed):
            await made.network.connect(made.workers[0].identity.peer_id, made.workers[0].network.addresses)


async def test_malformed_offers_are_penalised_and_never_hurt_the_worker(autojump_clock: object) -> None:
    """SRS-NODE-07."""
    async with world(workers=1) as made:
        peer = made.workers[0]
        protocol = peer.worker.protocol
        rubbish = (b"", b"\xc1", b"\x81\xa4kind\xa5offer", b"\x81\xa4kind\xa2\xff\xfe", b"\x81" * 500)
        for number, data in enumerate(rubbish):
            attacker = made.hub.network(Identity(bytes([number]) * 32))
            async with attacker.running():
                await attacker.connect(peer.identity.peer_id, peer.network.addresses)
                stream = await attacker.open_stream(peer.identity.peer_id, protocol)
                await write_frame(stream, data)
                with pytest.raises(StreamReset):
                    await stream.receive()
        assert peer.network.statistics().penalties["malformed task offer"] == len(rubbish)
        assert (await ask(made, question(3)))[0] == whole(3)


class LyingEngine(CountingEngine):
    """Says that it used a model which its manifest does not list."""

    async def _items(self, request: GenerateRequest) -> AsyncIterator[Token | Done]:
        async for item in super()._items(request):
            yield msgspec.structs.replace(item, model_sha256="ee" * 32) if isinstance(item, Done) else item


async def test_a_proof_that_does_not_add_up_is_rejected_and_another_worker_answers(autojump_clock: object) -> None:
    async with world() as made:
        liar = await made.add_worker(engine=LyingEngine())
        text, restarts = "", 0
        async with made.requester.inference(question(5)) as events:
            async for event in events:
                if isinstance(event, Started) and event.attempt == 1:
                    await made.add_worker()
                elif isinstance(event, Restart):
                    text, restarts = "", restarts + 1
                    assert "model that its manifest does not list" in event.reason
                elif isinstance(event, TokenEvent):
                    text += event.text
        assert isinstance(event, Completed) and event.worker != liar.identity.peer_id
        assert (text, restarts) == (whole(5), 1)
        assert made.scheduler.reliability.score(liar.identity.peer_id, made.clock.time()) == 0
        assert sum(made.network.statistics().penalties.values()) == 1


LONG = PromptTooLong("the prompt has 3000 tokens <script>")


async def test_what_two_workers_call_impossible_is_not_tried_elsewhere(autojump_clock: object) -> None:
    """And whoever asked reads our words, not theirs."""
    async with world(workers=4) as made:
        for error, code in ((UsageError("no context <script>"), "refused"), (LONG, "too_long")):
            for peer in made.workers:
                peer.engine.error = error
            before = made.requester.log.size
            with pytest.raises(InvalidTask) as caught:
                await ask(made, question())
            assert caught.value.code == code
            assert "script" not in str(caught.value) and "3000" not in str(caught.value)
            assert made.requester.log.size - before == 2
        with pytest.raises(InvalidTask) as caught:
            await ask(made, question(0))
        assert caught.value.code == "schema"


async def test_the_only_worker_is_believed(autojump_clock: object) -> None:
    async with world(workers=1) as made:
        made.workers[0].engine.error = LONG
        with pytest.raises(InvalidTask, match="too long"):
            await ask(made, question())


async def test_one_workers_word_ends_no_task_and_costs_it_when_its_like_does_it(autojump_clock: object) -> None:
    async with world(workers=2) as made:
        liar, honest = made.workers
        liar.engine.error = LONG
        answers = [await ask(made, question(3)) for _ in range(12)]
        assert {text for text, _, _ in answers} == {whole(3)}
        assert {completed.worker for _, completed, _ in answers} == {honest.identity.peer_id}
        assert 1 <= len(await liar.store.tasks()) < 12  # it is asked less and less
        now = made.clock.time()
        assert made.scheduler.reliability.score(liar.identity.peer_id, now) == 0
        assert made.scheduler.reliability.score(honest.identity.peer_id, now) > 0


async def test_a_worker_with_a_smaller_context_is_not_blamed_for_it(autojump_clock: object) -> None:
    async with world(workers=2) as made:
        small, _ = made.workers
        small.engine.error = LONG
        smaller = msgspec.structs.replace(CHAT, context=512)
        made.directory.note(small.manifest(int(made.clock.time() * 1000) + 1, models=(smaller, EMBEDDING)))
        for _ in range(12):
            assert (await ask(made, question(3)))[0] == whole(3)
        assert await small.store.tasks()
        assert made.scheduler.reliability.weight(small.identity.peer_id, made.clock.time()) > 0.5
        before = len(await small.store.tasks())
        for _ in range(12):  # what is too long for it is not even offered
            assert (await ask(made, question(3, "word " * 600)))[0] == whole(3)
        assert len(await small.store.tasks()) == before


async def test_a_crash_is_not_taken_for_agreement(autojump_clock: object) -> None:
    async with world(workers=2) as made:
        made.workers[0].engine.error = LONG
        made.workers[1].engine.error = TemporaryError("the engine died")
        with pytest.raises(NoWorkers):
            await ask(made, question())


async def test_an_engine_that_crashed_costs_the_task_one_attempt(autojump_clock: object) -> None:
    async with world() as made:
        broken = CountingEngine()
        broken.error = TemporaryError("the engine died")
        await made.add_worker(engine=broken)
        await made.add_worker()
        attempts = [(await ask(made, question(3)))[1].attempts for _ in range(6)]
        failed = await made.workers[0].store.tasks(state="failed")
        assert sum(attempts) - 6 == len(failed) >= 1
        assert failed[0].error == "engine: the engine died"


async def test_a_task_waits_for_an_engine_that_is_being_restarted(autojump_clock: object) -> None:
    """It costs neither an attempt nor the worker's good name."""
    async with world(workers=1) as made:
        engine = made.workers[0].engine
        engine.ready = False
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                await trio.sleep(3)
                engine.ready = True

            nursery.start_soon(restart)
            text, completed, restarts = await ask(made, question(3))
        assert (text, completed.attempts, restarts) == (whole(3), 1, 0)
        assert 3 <= trio.current_time() - began < 4
        assert made.scheduler.reliability.weight(completed.worker, made.clock.time()) > 0.9


async def test_our_own_limit_of_streams_loses_no_task(autojump_clock: object) -> None:
    """More at once than streams may be open with the only worker: they wait their turn, and it is not blamed."""
    async with world() as made:
        made.network.limits = NetworkLimits(exempt_local=True, max_streams_per_peer=8)
        peer = await made.add_worker(WorkerLimits(slots=30, queue=60))
        done: list[str] = []

        async def one(number: int) -> None:
            done.append((await ask(made, question(4, f"number {number}")))[0])

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
        assert done == [whole(4)] * 40
        assert peer.engine.most_active <= 8
        assert made.scheduler.reliability.weight(peer.identity.peer_id, made.clock.time()) > 0.9


class PiecewiseEngine(CountingEngine):
    """Says what it is told to, and counts what it is told to."""

    def __init__(self, tokens: list[Token], count: int) -> None:
        super().__init__()
        self.tokens, self.count = tokens, count

    async def _items(self, request: GenerateRequest) -> AsyncIterator[Token | Done]:
        for token in self.tokens:
            yield token
        async for item in super()._items(request):
            if isinstance(item, Done):
                yield msgspec.structs.replace(item, completion_tokens=self.count, finish="stop")


GRIN = [Token("", 1, math.nan), Token("", 2, math.nan), Token("", -1, -math.inf), Token("\U0001f600", 4, -0.5)]


async def test_characters_of_several_tokens_are_counted_and_what_is_unknown_stays_so(autojump_clock: object) -> None:
    async with world() as made:
        await made.add_worker(engine=PiecewiseEngine(GRIN * 3, 12))
        async with made.requester.inference(question(20)) as events:
            seen = [event async for event in events]
        tokens = [event for event in seen if isinstance(event, TokenEvent)]
        assert "".join(event.text for event in tokens) == "\U0001f600" * 3
        assert [event.logprob for event in tokens[:4]] == [None, None, -(2**21) + 1 / 1024, -0.5]
        assert isinstance(seen[-1], Completed) and seen[-1].details.completion_tokens == 12


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        ([Token("word ", 1, -0.5)] * 10, 20),  # more than were sent
        ([Token("", 1, -0.5)] * 19, 19),  # nearly none has any text
    ],
)
async def test_a_worker_cannot_count_tokens_that_it_did_not_send(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, tokens: list[Token], count: int
) -> None:
    honest = PiecewiseEngine(tokens, count)
    async with world() as made:  # an honest worker does not claim what its engine counts beyond that, and is not blamed
        await made.add_worker(engine=honest)
        _, completed, _ = await ask(made, question(20))
        assert 8 <= completed.details.completion_tokens < count
        assert not made.network.statistics().penalties
    monkeypatch.setattr("owm.tasks._worker.most_tokens", lambda *_: count)
    async with world() as made:
        liar = await made.add_worker(engine=honest)
        with pytest.raises(NoWorkers, match="counts more tokens than it sent"):
            await ask(made, question(20))
        assert sum(made.network.statistics().penalties.values()) == 1
        assert made.scheduler.reliability.score(liar.identity.peer_id, made.clock.time()) == 0
