"""The engine of a worker gets the share of the cards' memory that its operator allows (SRS-NODE-05)."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import trio

from tests.peer._process import PeerProcess, peer_process

pytestmark = pytest.mark.slow


async def engine_environment(worker: PeerProcess) -> dict[str, str]:
    with trio.fail_after(60):
        await worker.running()
        while True:
            for child in psutil.Process(worker._process.pid).children():
                if "owm.model.engine_main" in " ".join(child.cmdline()):
                    return child.environ()
            await trio.sleep(0.05)


async def test_the_limit_reaches_the_engines_process_unless_the_operator_set_one(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Test Card, 24000, 1.0'\necho 'Test Card, 8000, 1.0'\n")
    tool.chmod(0o755)
    settings = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OWM_MODEL_MAX_VRAM_PERCENT": "50"}
    async with peer_process(tmp_path / "one", "--roles", "worker", **settings) as worker:
        found = await engine_environment(worker)
        assert found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=12000M,1=4000M"
    settings["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = "0=1G"
    async with peer_process(tmp_path / "two", "--roles", "worker", **settings) as worker:
        assert (await engine_environment(worker))["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=1G"
