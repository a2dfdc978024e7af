"""Runs one command line in this process, as the console script does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from owm.cli._app import app, run


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


@dataclass
class Cli:
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *args: str) -> Outcome:
        self.capsys.readouterr()
        code = run(app, list(args))
        out, err = self.capsys.readouterr()
        return Outcome(code, out, err)
