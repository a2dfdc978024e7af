from __future__ import annotations

import pytest

from tests.cli._run import Cli


@pytest.fixture
def owm(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)
