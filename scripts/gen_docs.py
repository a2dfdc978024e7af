"""Writes the generated pages of docs/, or with --check says which of them are out of date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from scripts import api_reference, attack_coverage, performance

ROOT = Path(__file__).resolve().parent.parent

_CONFIGURATION = """\
Flags win over environment variables, those over `owm.toml`, that over the defaults. `owm config show --effective`
prints every value and where it comes from, `owm config check` checks a file, `owm init` writes a commented one. A
misspelt key or a value that is not allowed is an error that names it (exit code 3). Lists in environment variables are
separated by commas.

Besides `OWM_<SECTION>_<KEY>` these variables are read: `OWM_CONFIG` (the file), `OWM_DATA_DIR`,
`OWM_MODEL_CACHE_DIR`, `OWM_LOG_LEVEL`, `OWM_LND_HOST`, `OWM_LND_TLS_CERT_PATH`, `OWM_COORDINATOR_URL`,
`OWM_IDENTITY_KEY_PATH` (the seed) and `OWM_API_KEY` (what `owm ask` sends)."""

_COMMAND_LINE = """\
Commands print tables on a terminal, tab-separated lines when piped, and JSON with `--json`. `owm-node start` takes the
options of `owm peer`."""


def configuration() -> str:
    """Every setting with its default, variable and comment, from the source's own doc comments."""
    from owm.config import describe_settings

    lines = [
        "# Configuration",
        "",
        _CONFIGURATION,
    ]
    section = ""
    for setting in describe_settings():
        if setting.section != section:
            section = setting.section
            lines += ["", f"## [{section}]", "", setting.section_comment, ""]
            lines += ["| key | default | meaning | variable |", "|---|---|---|---|"]
        shown = f"`{json.dumps(setting.default)}`"
        lines.append(f"| `{setting.key}` | {shown} | {setting.comment} | `{setting.variable}` |")
    return "\n".join(lines) + "\n"


def _help_pages(command: click.Command, name: str, parent: click.Context | None) -> list[str]:
    settings = {**command.context_settings, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, **settings)
    level = "##" if parent is None else "###" if parent.parent is None else "####"
    lines = ["", f"{level} {context.command_path}", "", "```text", command.get_help(context).rstrip(), "```"]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            lines += _help_pages(found, child, context)
    return lines


def command_line() -> str:
    """The help page of every command, and the exit codes."""
    from owm.cli._app import EXIT_CODES, app

    lines = [
        "# Command line",
        "",
        _COMMAND_LINE,
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
    ]
    return "\n".join([*lines, *_help_pages(app, "owm", None)]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration,
    "docs/cli.md": command_line,
    "docs/api-reference.md": api_reference.render,
    "docs/attack-coverage.md": attack_coverage.render,
    "docs/performance.md": performance.render,
}


def main() -> int:
    """Write the pages, or check them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, render in PAGES.items():
        path, text = ROOT / name, render()
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} is out of date: run `make docs`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
