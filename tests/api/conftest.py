"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from owm.model.testing import StandInEngine
from tests.api._gateway import Served, World, gateway_before, served


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A gateway and one worker."""
    async with gateway_before(tmp_path, [StandInEngine(slots=4, tokens=40, pace=0.01)]) as found:
        yield found


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Served]:
    """A gateway in front of a scripted network."""
    async with served(tmp_path) as found:
        yield found
