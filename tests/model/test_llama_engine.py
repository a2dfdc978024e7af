"""The real engine: llama.cpp and MiniLM in a process of their own, with the shipped models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
import trio
import trio.lowlevel

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ChatMessage, Done, Engine, GenerateRequest, ModelCache, Token, engine_of
from owm.model.errors import BadWeights, EngineCrashed, InvalidRequest, PromptTooLong

pytestmark = pytest.mark.slow

QUESTIONS = (
    "What is the capital of France?",
    "How many legs does a spider have?",
    "What is the boiling point of water?",
    "Who wrote Hamlet?",
    "Which planet is closest to the sun?",
    "What do bees make?",
    "What is the opposite of hot?",
    "Name a primary colour.",
    "What language is spoken in Brazil?",
    "How many minutes are in an hour?",
)

# llama.cpp called directly: the chat template rendered by its own server, one slot, one thread, greedy.
DIRECT = """
import http.client, json, os, socket, sys, tempfile
import xllamacpp
weights, system, questions = json.loads(sys.argv[1])
path = os.path.join(tempfile.mkdtemp(), "direct.sock")
p = xllamacpp.CommonParams()
p.model.path = weights
p.n_parallel, p.n_ctx, p.verbosity, p.ui, p.cache_ram_mib = 1, 2048, -1, False, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.hostnames, p.api_keys = [path], ["k"]
server = xllamacpp.Server(p)
out = []
for question in questions:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    c = http.client.HTTPConnection("localhost")
    c.sock = socket.socket(socket.AF_UNIX)
    c.sock.connect(path)
    c.request("POST", "/apply-template", json.dumps({"messages": messages}), {"Authorization": "Bearer k"})
    prompt = json.loads(c.getresponse().read())["prompt"]
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 24, "temperature": 0, "cache_prompt": False})
    out.append(answer["choices"][0]["text"])
print(json.dumps(out))
os._exit(0)
"""


@pytest.fixture(scope="module")
def cache() -> ModelCache:
    found = ModelCache(expand(ModelSettings().model_cache_dir))
    for card in SHIPPED.values():
        found.pull(card)
    return found


@pytest.fixture
async def engine(cache: ModelCache) -> AsyncIterator[Engine]:
    engine = engine_of(ModelSettings(model_cache_dir=str(cache.folder), slots=2, context=1024))
    async with engine.running():
        yield engine


def ask(question: str, tokens: int = 24) -> GenerateRequest:
    return GenerateRequest(messages=(ChatMessage("user", question),), max_tokens=tokens)


async def whole(engine: Engine, question: str, tokens: int = 24) -> tuple[str, Done]:
    text, done = "", None
    async with engine.generate(ask(question, tokens)) as items:
        async for item in items:
            if isinstance(item, Token):
                text += item.text
            else:
                done = item
    assert done is not None
    return text, done


async def test_streamed_text_is_llama_cpps_own_for_ten_questions(cache: ModelCache) -> None:
    card = SHIPPED["smollm2-135m-instruct"]
    given = json.dumps([str(cache.path(card)), card.system_prompt, QUESTIONS])
    direct = await trio.run_process([sys.executable, "-c", DIRECT, given], capture_stdout=True)
    expected = json.loads(direct.stdout.splitlines()[-1])
    engine = engine_of(ModelSettings(model_cache_dir=str(cache.folder), slots=1, threads=1, embedding=""))
    async with engine.running():
        for question, text in zip(QUESTIONS, expected, strict=True):
            streamed, done = await whole(engine, question)
            assert streamed == text
            assert done.model_sha256 == card.sha256
            assert 0 < done.completion_tokens <= 24
    assert "Paris" in expected[0]


async def test_a_killed_engine_fails_what_runs_and_is_back_soon(engine: Engine) -> None:
    first = engine.statistics().pid
    assert first is not None
    with pytest.raises(EngineCrashed):
        async with engine.generate(ask("Tell a long story.", 400)) as items:
            count = 0
            async for _ in items:
                count += 1
                if count == 5:
                    os.kill(first, signal.SIGKILL)
    with trio.fail_after(20):
        while not (engine.statistics().restarts and engine.statistics().ready):  # noqa: ASYNC110 - another process decides
            await trio.sleep(0.1)
    assert engine.statistics().pid != first
    assert engine.statistics().restarts == 1
    assert (await whole(engine, "What do bees make?"))[0]


async def test_leaving_a_generation_frees_its_slot_within_a_second(engine: Engine) -> None:
    for _ in range(2):
        async with engine.generate(ask("Tell a long story.", 800)) as items:
            async for _ in items:
                break
    pid = engine.statistics().pid
    assert pid is not None
    process = psutil.Process(pid)
    before = process.cpu_times().user
    with trio.fail_after(60):  # both slots work for ten seconds and more if nobody cancelled
        async with engine.generate(ask("What do bees make?", 4)) as items:
            async for _ in items:
                break
    # In the engine's own time, which does not depend on what else runs on this machine.
    assert process.cpu_times().user - before < 1.0


async def test_more_generations_than_slots_all_end(engine: Engine) -> None:
    answers: list[str] = []

    async def one(question: str) -> None:
        answers.append((await whole(engine, question, 8))[0])

    async with trio.open_nursery() as nursery:
        for question in QUESTIONS[:4]:
            nursery.start_soon(one, question)
    assert len(answers) == 4
    assert all(answers)


async def test_what_cannot_be_served_is_refused_before_any_token(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="1024"):
        await whole(engine, "word " * 2000)
    with pytest.raises(InvalidRequest):
        await whole(engine, "", 0)
    with pytest.raises(InvalidRequest, match="nothing"):
        await engine.embed([])
    with pytest.raises(InvalidRequest):
        async with engine.generate(GenerateRequest(messages=(ChatMessage("user", "x"),), model="other")):
            pass
    assert engine.statistics().generated_tokens == 0


async def test_embeddings_are_unit_vectors_that_know_what_is_alike(engine: Engine) -> None:
    texts = ["A dog runs in the park.", "A puppy plays outside.", "Interest rates rose again."]
    found = await engine.embed(texts)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    assert [len(vector) for vector in found.vectors] == [384, 384, 384]
    assert all(abs(dot(v, v) - 1) < 1e-5 for v in found.vectors)
    assert dot(found.vectors[0], found.vectors[1]) > 0.4 > 0.2 > dot(found.vectors[0], found.vectors[2])
    again = await engine.embed(list(reversed(texts)))
    assert max(abs(a - b) for a, b in zip(again.vectors[2], found.vectors[0], strict=True)) < 1e-6


async def test_too_little_memory_is_an_error_and_no_hang(cache: ModelCache) -> None:
    engine = engine_of(ModelSettings(model_cache_dir=str(cache.folder), memory_limit_mib=300))
    with trio.fail_after(60), pytest.raises((BadWeights, EngineCrashed, BaseExceptionGroup)):
        async with engine.running():
            pass


async def test_the_engine_dies_with_its_peer(cache: ModelCache) -> None:
    folder = str(cache.folder)
    program = (
        "import sys, trio\n"
        "from owm.config import ModelSettings\n"
        "from owm.model import engine_of\n"
        "async def main():\n"
        f"    engine = engine_of(ModelSettings(model_cache_dir={folder!r}, embedding=''))\n"
        "    async with engine.running():\n"
        "        print(engine.statistics().pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert parent.stdout is not None
    pid = int(await trio.to_thread.run_sync(parent.stdout.readline))
    parent.kill()
    parent.wait()
    with trio.fail_after(5):
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC240
            if "Z" in open(f"/proc/{pid}/stat").read().split()[2]:  # noqa: ASYNC230, SIM115
                break  # dead; nobody has reaped it yet
            await trio.sleep(0.05)


async def test_a_killed_engine_says_that_it_is_away_and_that_it_is_back(engine: Engine) -> None:
    seen: list[bool] = []
    pid = engine.statistics().pid
    assert pid is not None

    async def watch() -> None:
        while True:
            await engine.readiness_changed()
            seen.append(engine.statistics().ready)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.lowlevel.checkpoint()
            os.kill(pid, signal.SIGKILL)
            while len(seen) < 2:  # noqa: ASYNC110 - another process decides
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert seen == [False, True]


async def test_every_seed_repeats_itself_and_no_two_say_the_same(engine: Engine) -> None:
    """The highest one too, which llama.cpp itself takes for "any"."""
    said = []
    for seed in (2**32 - 1, 2**32 - 1, 0, 0, 1):
        request = GenerateRequest(
            messages=(ChatMessage("user", "Tell a story."),), max_tokens=12, temperature=1.0, seed=seed
        )
        async with engine.generate(request) as items:
            said.append("".join([item.text async for item in items if isinstance(item, Token)]))
    assert said[0] == said[1] and said[2] == said[3]
    assert len({said[0], said[2], said[4]}) == 3
