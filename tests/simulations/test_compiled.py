"""The compiled copy of the cores: a help for speed that changes nothing, and never out of date."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from owm.compiled import compiled_folder

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = ("simulate", "baseline", "--nodes", "60", "--duration", "60", "--json")


def owm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owm", *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("gcc") is None and not os.environ.get("CI"), reason="needs a C compiler")
def test_compiled_cores_give_the_same_trace_and_serve_a_peer(tmp_path: Path) -> None:
    folder = compiled_folder()
    if folder.exists():
        shutil.rmtree(folder)
    refused = owm(*ARGUMENTS, "--compiled")
    assert refused.returncode == 2, refused.stderr
    assert "make compile" in refused.stderr
    made = subprocess.run(
        [sys.executable, "-m", "scripts.compile_cores"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert made.returncode == 0, made.stderr + made.stdout
    assert str(folder) in made.stdout
    _a_peer_runs_on_them(folder, tmp_path)
    plain, compiled = (json.loads(owm(*ARGUMENTS, *more).stdout) for more in ((), ("--compiled",)))
    assert plain["trace_hash"] == compiled["trace_hash"]
    assert plain["events"] == compiled["events"]


def _a_peer_runs_on_them(folder: Path, data: Path) -> None:
    command = [sys.executable, "-m", "owm", "peer", "--compiled", "--network", "devnet", "--data-dir", str(data)]
    peer = subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--health-port", "0"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert peer.stdout is not None
    try:
        for line in peer.stdout:
            if "the peer runs" in line:
                break
        loaded = Path(f"/proc/{peer.pid}/maps").read_text()
        assert str(folder / "owm/gossip/_core.") in loaded and str(folder / "owm/net/_core_yamux.") in loaded
    finally:
        peer.terminate()
        assert peer.wait(30) == 0
