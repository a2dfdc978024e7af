"""The page for operators: its settings are settings, its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from owm.cli._app import app
from owm.config import load_settings
from owm.identity import Identity
from owm.model import engine_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "node-setup.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_piece_of_owm_toml_is_accepted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "owm.toml"
    file.write_text(text)
    load_settings(file, {}, {})


def test_the_model_server_s_settings_make_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [text for text in blocks("toml") if "openai" in text]
    file = tmp_path / "owm.toml"
    file.write_text(text)
    settings = load_settings(file, {}, {}).settings
    monkeypatch.setenv(settings.model.api_key_env, "secret")
    engine = engine_of(settings.model, Identity.generate().peer_id)
    assert engine.kind == "openai" and engine.statistics().slots == settings.network.max_concurrent_tasks
    assert f"vllm serve {engine.models[0].id} " in PAGE and settings.model.url in PAGE.replace("/models", "")


@pytest.mark.parametrize("server", ["vllm serve", "sglang.launch_server", "llama-server", "ollama serve"])
def test_each_server_has_a_command_that_can_be_copied(server: str) -> None:
    assert any(server in block for block in blocks("sh"))


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if line.startswith("owm ")]
)
def test_every_command_exists_with_its_options(line: str) -> None:
    arguments = shlex.split(line.split("  #", maxsplit=1)[0])[1:]
    command: click.Command = app
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), arguments[0])
        assert found is not None, line
        command, arguments = found, arguments[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert [part for part in arguments if part.startswith("--") and part not in known] == []
