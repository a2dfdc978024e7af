"""What all tests share: no setting of the developer's own machine reaches a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith("OWM_") and name != "OWM_MODEL_CACHE_DIR":
            monkeypatch.delenv(name)
    # The models are large and checked by hash, so tests share the developer's; everything else is their own.
    if "OWM_MODEL_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("OWM_MODEL_CACHE_DIR", str(Path.home() / ".owm" / "models"))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def _plain_logging() -> None:
    structlog.reset_defaults()
