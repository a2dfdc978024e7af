"""``owm doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from owm.cli._checks import run_checks
from owm.cli._model_checks import model_findings
from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, plain, print_json
from owm.cli._peer_checks import peer_findings

__all__ = ["doctor_command"]

_MARKS: Final = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


@click.command("doctor")
@config_options
@json_option
def doctor_command(config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Check this machine and say what to do about what is wrong. Exit code 1 where there is an error.

    \b
    Examples:
      owm doctor
      owm doctor --config owm.toml --json
    """
    effective = settings_of(config, data_dir)
    findings = [*run_checks(effective), *model_findings(effective), *peer_findings(effective)]
    failed = any(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
        return int(failed)
    for finding in findings:
        click.echo(f"{_MARKS[finding.level]}  {finding.name}: {plain(finding.detail)}")
        if finding.remedy:
            click.echo(f"         -> {plain(finding.remedy)}")
    return int(failed)
