"""owm devnet with real processes and the real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import trio
from trio.testing import MockClock

from owm.cli._devnet import Devnet, Member, plan
from owm.errors import TemporaryError
from tests.cli._run import Cli

DEADLINE = 150.0


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "owm", "devnet", "--dir", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def peers_of(folder: Path) -> list[psutil.Process]:
    """Every process that was started with a folder of this devnet."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and "owm peer" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(holds: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)  # other processes are waited for; there is nothing else to watch


def test_the_plan_names_gateways_first_and_gives_each_its_own_folder(tmp_path: Path) -> None:
    members = plan(tmp_path, workers=2, gateways=2)
    assert [(m.name, m.roles) for m in members] == [
        ("gateway-1", ("gateway",)),
        ("gateway-2", ("gateway",)),
        ("worker-1", ("worker",)),
        ("worker-2", ("worker",)),
    ]
    assert len({m.folder for m in members}) == 4


async def test_a_peer_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    devnet = Devnet(
        [Member("gateway-1", ("gateway",), tmp_path / "g")], flags=["--network", "/nonexistent/network.toml"]
    )
    with pytest.raises(TemporaryError, match=r"gateway-1 ended with exit code 3(.|\n)*there is no network"):
        await devnet.start()
    await devnet.stop()
    assert devnet.members[0].exit_code == 3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_command_answers_a_question_and_leaves_nothing_behind(owm: Cli, tmp_path: Path) -> None:
    process = start(tmp_path, "--peers", "3", "--ask", "What is the capital of France?", "--json")
    out, err = process.communicate(timeout=2 * DEADLINE)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert "Paris" in found["answer"]
    assert found["worker"] and found["receipt_id"] and found["first_token_ms"] > 0
    assert peers_of(tmp_path) == []
    tasks = owm("tasks", "--data-dir", str(tmp_path / "worker-1"), "--json").json
    tasks += owm("tasks", "--data-dir", str(tmp_path / "worker-2"), "--json").json
    assert len(tasks) == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_devnet_that_ends_takes_its_peers_along(tmp_path: Path, how: signal.Signals) -> None:
    """By Ctrl-C in order and with exit code 0; by SIGKILL because the kernel tells the peers."""
    process = start(tmp_path, "--peers", "2")
    try:
        wait_until(lambda: (tmp_path / "worker-1" / "peer.json").exists() or process.poll() is not None, "the worker")
        assert process.poll() is None, process.communicate()
        running = peers_of(tmp_path)
        assert len(running) == 2
        engines = [child for peer in running for child in peer.children(recursive=True)]
        os.kill(process.pid, how)
        process.communicate(timeout=30)
        assert process.returncode == (0 if how == signal.SIGINT else -signal.SIGKILL)
        wait_until(lambda: peers_of(tmp_path) == [], "the peers to end", 20)
        wait_until(lambda: not any(_runs(engine) for engine in engines), "the engines to end", 20)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
async def test_stopping_waits_for_what_runs_until_it_is_told_not_to(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A peer that completes an answer of two minutes is not killed; a second Ctrl-C is :meth:`Devnet.kill`."""
    busy = subprocess.Popen(  # noqa: ASYNC220
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert busy.stdout is not None and busy.stdout.readline() == b"ready\n"
    devnet = Devnet([Member("gateway-1", ("gateway",), tmp_path / "g", process=busy)])
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(devnet.stop)
            await trio.sleep(130)
            assert busy.poll() is None
            devnet.kill()
    finally:
        devnet.kill()
        busy.stdout.close()
    assert busy.returncode == -signal.SIGKILL
