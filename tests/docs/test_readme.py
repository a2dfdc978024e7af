"""Every command that the README shows is run as it stands there, in an empty folder, as far as one machine can."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from owm.cli._local import read_peer_file

ROOT = Path(__file__).resolve().parents[2]
MAKE_RUN = "make run"
MAKE_TEST = "make test"
FIVE_PEERS = '.venv/bin/owm devnet --peers 5 --ask "What is the capital of France?"'
DEVNET = ".venv/bin/owm devnet"
ASK = '.venv/bin/owm ask "Why is the sky blue?"'
INIT = ".venv/bin/owm init --data-dir ./my-peer --roles worker"
PEER = ".venv/bin/owm peer --data-dir ./my-peer --bootstrap /ip4/192.0.2.1/tcp/9000"
#: Those that have a test of their own here; all others end by themselves and are run in their order by one test.
OWN = {MAKE_RUN, MAKE_TEST, FIVE_PEERS, DEVNET, ASK, PEER}
DOCTOR_FINDS_NO_BOOTSTRAP = (0, 1)  # what else it finds depends on the machine
DEADLINE = 120.0


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty folder in which ``.venv/bin/owm`` is what is under test."""
    script = tmp_path / ".venv" / "bin" / "owm"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m owm "$@"\n')
    script.chmod(0o755)
    return tmp_path


@contextmanager
def started(command: str, folder: Path, **environ: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command and the file that its output goes to; what is left of it is killed at the end."""
    out = folder / "output.txt"
    with out.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            text=True, start_new_session=True, env={**os.environ, **environ},
        )  # fmt: skip
    try:
        yield process, out
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(found: Callable[[], object], process: subprocess.Popen[str], out: Path) -> None:
    end = time.monotonic() + DEADLINE
    while not found():
        assert process.poll() is None, f"it ended with {process.returncode}: {out.read_text()}"
        assert time.monotonic() < end, f"nothing came: {out.read_text()}"
        time.sleep(0.1)  # another process is waited for; there is nothing else to watch


def interrupt(process: subprocess.Popen[str]) -> int:
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(60)


def shown(out: Path, name: str) -> str:
    """What a running devnet prints after ``Open`` or ``Or``; empty until it has."""
    match = re.search(rf"^  {name} +(\S.*)$", out.read_text(), re.M)
    return match[1] if match else ""


def is_set_up() -> bool:
    """Whether `make setup` has nothing to do: a test must not install into what it runs in."""
    script = (ROOT / "scripts" / "setup.sh").read_text()
    extras = re.search(r'^extras="(.*)"$', script, re.M)
    stamp = ROOT / ".venv" / ".owm-setup"
    if extras is None or not stamp.is_file():
        return False
    head = f"{ROOT} {extras[1]}\n".encode()
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh")]
    return stamp.read_text().strip() == hashlib.sha256(head + b"".join(files)).hexdigest()


def test_the_first_commands_are_the_main_job_and_the_tests() -> None:
    assert commands()[:2] == [MAKE_RUN, MAKE_TEST]


def test_no_command_of_the_readme_is_left_out() -> None:
    assert set(commands()) >= OWN | {INIT}
    assert all(command.startswith(".venv/bin/owm ") for command in commands() if command not in OWN)
    assert len(commands()) == len(set(commands()))


def test_make_test_runs_the_whole_suite() -> None:
    """It is what runs this; so here only what it would do."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # it may run this
    plan = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True, env=environ
    ).stdout
    *_, last = plan.strip().splitlines()
    assert "scripts/setup.sh" in plan
    assert "-m pytest" in last and " -m " not in last.split("-m pytest")[1] and "tests/" not in last


@pytest.mark.slow
def test_the_commands_that_end_by_themselves_run(checkout: Path) -> None:
    for command in commands():
        if command in OWN:
            continue
        outcome = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, timeout=60)
        allowed = DOCTOR_FINDS_NO_BOOTSTRAP if " doctor " in command else (0,)
        assert outcome.returncode in allowed, (command, outcome.stderr)
        assert outcome.stdout or outcome.stderr, command
        assert "Traceback" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_five_peers_answer_one_question(checkout: Path) -> None:
    outcome = subprocess.run(["bash", "-c", FIVE_PEERS], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert "Paris" in outcome.stdout
    for name in ("worker", "receipt", "first token"):
        assert re.search(rf"^{name} +[\w-]+", outcome.stdout, re.M), outcome.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_devnet_is_asked_from_elsewhere(checkout: Path) -> None:
    with started(DEVNET, checkout) as (process, out):
        wait_for(lambda: shown(out, "Or"), process, out)
        outcome = subprocess.run(["bash", "-c", ASK], cwd=checkout, capture_output=True, text=True, timeout=120)
        assert outcome.returncode == 0, outcome.stderr
        assert len(outcome.stdout.split()) > 3 and "receipt" in outcome.stderr
        assert "Open World Model" in httpx.get(shown(out, "Open"), timeout=10).text
        if shutil.which("curl"):
            curl = subprocess.run(["bash", "-c", shown(out, "Or")], capture_output=True, text=True, timeout=120)
            assert "event: done" in curl.stdout and "Paris" in curl.stdout, curl.stderr
        assert interrupt(process) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_make_run_starts_a_network(tmp_path: Path) -> None:
    without = "" if is_set_up() else "-o setup"
    with started(f"make -C '{ROOT}' {without} run", tmp_path) as (process, out):
        wait_for(lambda: shown(out, "Open"), process, out)
        assert httpx.get(f"{shown(out, 'Open')}v1/network/stats", timeout=10).json()["workers"] >= 1
        interrupt(process)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_peer_of_ones_own_runs_says_what_failed_and_ends_in_order(checkout: Path) -> None:
    """Nobody is at the address of the README: it is reserved for documentation."""
    subprocess.run(["bash", "-c", INIT], cwd=checkout, check=True, capture_output=True, timeout=60)
    with started(PEER, checkout, OWM_NETWORK_LISTEN_PORT="0", OWM_HEALTH_PORT="0") as (process, out):
        wait_for(lambda: read_peer_file(checkout / "my-peer"), process, out)
        wait_for(lambda: "192.0.2.1" in out.read_text(), process, out)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    assert "Traceback" not in out.read_text()
