"""The documents say what the program does: generated pages are current, and nothing that users meet is missing."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from owm.cli._app import COMMANDS, EXIT_CODES, app
from owm.config import describe_settings
from scripts import gen_docs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", gen_docs.PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == gen_docs.PAGES[name](), "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| `OWM_\w+` \|$", page, re.M))
    assert [s.key for s in describe_settings() if not rows.get(s.key)] == []


def test_every_command_and_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    def paths(command: click.Command, path: str) -> list[str]:
        if not isinstance(command, click.Group):
            return [path]
        context = click.Context(command)
        found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        return [path, *(p for name, child in found if child for p in paths(child, f"{path} {name}"))]

    missing = [path for path in paths(app, "owm") if not re.search(rf"^#+ {path}$", page, re.M)]
    assert missing == []
    assert [code for code in EXIT_CODES if f"| {code} | " not in page] == []
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and p.name not in index] == []
