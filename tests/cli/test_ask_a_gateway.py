"""owm ask, as a process of its own, before a real gateway whose workers die.

Every word carries the name of the worker that said it, so a word of the lost answer in the new one would show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.api._gateway import NamedEngine, World, gateway_before

pytestmark = pytest.mark.slow

WORDS = 30
VOID = "void, another begins anew"


@dataclass
class Asked:
    code: int
    out: str
    err: str


@asynccontextmanager
async def workers(folder: Path, *names: str, pace: float = 0.03) -> AsyncIterator[World]:
    engines = [NamedEngine(name, slots=4, tokens=WORDS, pace=pace) for name in names]
    async with gateway_before(folder, engines) as world:
        yield world


def command(world: World, *more: str) -> list[str]:
    return [sys.executable, "-m", "owm", "ask", "Tell me", "--url", world.url, "--key", world.key, *more]


async def piped(world: World, *more: str) -> Asked:
    done = await trio.run_process(command(world, *more), capture_stdout=True, capture_stderr=True, check=False)
    return Asked(done.returncode, done.stdout.decode(), done.stderr.decode())


async def on_a_terminal(world: World, *more: str) -> Asked:
    """The same with a pseudo-terminal as its standard output."""
    master, slave = os.openpty()
    shown = b""
    try:
        process = subprocess.Popen(command(world, *more), stdout=slave, stderr=subprocess.PIPE)  # noqa: ASYNC220
        os.close(slave)
        terminal = trio.lowlevel.FdStream(os.dup(master))
        try:
            while chunk := await terminal.receive_some(65536):
                shown += chunk
        except trio.BrokenResourceError:
            pass  # how Linux says that the other side has closed
        await terminal.aclose()
        _, err = await trio.to_thread.run_sync(process.communicate)
    finally:
        os.close(master)
    return Asked(process.returncode, shown.decode().replace("\r\n", "\n"), err.decode())


async def answering(world: World, tokens: int = 5) -> int:
    """Wait for the worker that has said so many words of an answer; returns its number."""
    with trio.fail_after(30):
        while True:
            for number, engine in enumerate(world.engines):
                if engine.statistics().busy and engine.generated >= tokens:
                    return number
            await trio.sleep(0.005)


async def ask_and_lose(world: World, ask: Callable[..., object], *more: str, tokens: int = 5) -> tuple[Asked, int]:
    found: list[Asked] = []

    async def asking() -> None:
        found.append(await ask(world, *more))  # type: ignore[misc]

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking)
            lost = await answering(world, tokens)
            world.kill(lost)
    return found[0], lost


def who_said(text: str) -> set[str]:
    return {word[-1] for word in text.split()}


def survivor(lost: int) -> str:
    return "AB"[1 - lost]


async def test_into_a_pipe_goes_the_final_answer_and_nothing_else(tmp_path: Path) -> None:
    async with workers(tmp_path, "A", "B") as world:
        asked, lost = await ask_and_lose(world, piped)
    assert asked.code == 0, asked.err
    assert who_said(asked.out) == {survivor(lost)} and len(asked.out.split()) == WORDS
    assert asked.out.endswith("\n") and asked.out.count("\n") == 1
    assert "restarts     1" in asked.err and "receipt" in asked.err


async def test_on_a_terminal_what_was_shown_is_declared_void(tmp_path: Path) -> None:
    async with workers(tmp_path, "A", "B") as world:
        asked, lost = await ask_and_lose(world, on_a_terminal)
    assert asked.code == 0, asked.err
    before, after = asked.out.split(VOID)
    spoken = before.split("\n[")[0]
    assert who_said(spoken) == {"AB"[lost]} and len(spoken.split()) >= 4
    answer = after.split("]")[1].split("worker")[0]
    assert who_said(answer) == {survivor(lost)} and len(answer.split()) == WORDS
    assert "receipt" in after and "restarts     1" in after


async def test_json_holds_the_new_answer_and_that_there_was_a_restart(tmp_path: Path) -> None:
    async with workers(tmp_path, "A", "B") as world:
        asked, lost = await ask_and_lose(world, piped, "--json")
    assert asked.code == 0 and asked.err == ""
    found = json.loads(asked.out)
    assert (found["restarts"], found["attempts"]) == (1, 2)
    assert who_said(found["answer"]) == {survivor(lost)} and len(found["answer"].split()) == WORDS


async def test_before_anything_was_sent_nobody_is_told(tmp_path: Path) -> None:
    async with workers(tmp_path, "A", "B", pace=0.2) as world:
        asked, lost = await ask_and_lose(world, on_a_terminal, "--max-tokens", "5", tokens=0)
    assert asked.code == 0 and VOID not in asked.out and "restarts" not in asked.out
    assert who_said(asked.out.split("worker")[0]) == {survivor(lost)}


@pytest.mark.parametrize("ask", [piped, on_a_terminal])
@pytest.mark.parametrize("more", [(), ("--json",)])
async def test_when_nobody_is_left_it_is_one_error_and_exit_code_6(
    tmp_path: Path, ask: Callable[..., object], more: tuple[str, ...]
) -> None:
    async with workers(tmp_path, "A") as world:
        asked, _ = await ask_and_lose(world, ask, *more)
    assert asked.code == 6
    if more:
        assert asked.out == ""
        error = json.loads(asked.err)
        assert error["exit_code"] == 6 and "worker" in error["error"]
        return
    assert asked.err.count("Error:") == 1 and "worker" in asked.err and len(asked.err.splitlines()) == 1
    assert asked.out == "" if ask is piped else VOID in asked.out


async def test_a_key_that_the_gateway_does_not_know_is_exit_code_2(tmp_path: Path) -> None:
    async with workers(tmp_path, "A") as world:
        asked = await piped(world, "--key", "owm_unknown")
        fine = await piped(world)
    assert (asked.code, asked.out) == (2, "") and "401" in asked.err
    assert fine.code == 0 and who_said(fine.out) == {"A"}


async def test_ctrl_c_ends_the_work_too_and_is_exit_code_130(tmp_path: Path) -> None:
    async with workers(tmp_path, "A", pace=0.2) as world:
        process = await trio.lowlevel.open_process(command(world), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await answering(world)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            assert await process.wait() == 130
            assert process.stdout is not None and process.stderr is not None
            assert await process.stdout.receive_some() == b""
            assert b"Traceback" not in await process.stderr.receive_some()
        await world.idle()
        assert world.engine.cancelled == 1
