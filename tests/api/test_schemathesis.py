"""Two thousand generated requests against the OpenAPI document: whatever comes, the gateway never fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.api._gateway import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

CASES_PER_OPERATION = 340  # of the six operations that take anything


async def test_no_generated_request_makes_the_gateway_fail(world: World) -> None:
    world.engine.pace = 0.0
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{world.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {world.key}",
        "--checks",
        "not_a_server_error",
        "--phases",
        "fuzzing",
        "--max-examples",
        str(CASES_PER_OPERATION),
        "--seed",
        "1",
        "--generation-deterministic",
        "--no-color",
    ]
    with trio.fail_after(270):
        done = await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=subprocess.DEVNULL
        )
    report = done.stdout.decode()
    assert done.returncode == 0, report[-4000:]
    generated = re.search(r"(\d+) generated", report)
    assert generated is not None and int(generated[1]) >= 2000, report[-2000:]
