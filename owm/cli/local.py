"""``owm status``, ``owm peers``, ``owm tasks`` and ``owm version``: what the local peer knows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from owm import __version__
from owm.cli._local import fetch
from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, plain, print_json, print_table
from owm.config import Effective
from owm.errors import TemporaryError, UsageError

__all__ = ["peers_command", "status_command", "tasks_command", "version_command"]


@click.command("status")
@config_options
@json_option
def status_command(config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Show what the local peer is and does.

    \b
    Examples:
      owm status
      owm status --data-dir /srv/owm --json
    """
    status = fetch(settings_of(config, data_dir), "status")
    if as_json:
        print_json(status)
        return 0
    for name, value in _flat(status):
        click.echo(f"{name.replace('_', ' '):<24} {plain(value, '')}")
    return 0


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, found in value.items():
        if isinstance(found, dict):
            rows += _flat(found, f"{prefix}{name}.")
        elif isinstance(found, list):
            rows.append((prefix + name, ", ".join(map(str, found)) or "-"))
        else:
            rows.append((prefix + name, "-" if found in (None, "") else found))
    return rows


@click.command("peers")
@config_options
@json_option
def peers_command(config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """List the peers that the local peer knows.

    \b
    Examples:
      owm peers
      owm peers --json
    """
    found = fetch(settings_of(config, data_dir), "peers")
    if as_json:
        print_json(found)
        return 0
    columns = ("peer_id", "roles", "tier", "models", "state", "rtt_ms", "score")
    rows = [[_cell(peer.get(column)) for column in columns] for peer in found]
    print_table(("peer", "roles", "tier", "models", "state", "rtt ms", "score"), rows, empty="No peer is known yet.")
    return 0


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value in (None, "") else str(value)


@click.command("tasks")
@config_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--id", "task_id", default="", metavar="ID", help="One task with all its attempts, input and output.")
@json_option
def tasks_command(config: Path | None, data_dir: str | None, limit: int, task_id: str, as_json: bool) -> int:
    """List the newest tasks of the local task log, whether the peer runs or not.

    \b
    Examples:
      owm tasks
      owm tasks --limit 100 --json
      owm tasks --id 0123456789abcdef0123456789abcdef
    """
    effective = settings_of(config, data_dir)
    if task_id:
        return _show_task(effective, task_id, as_json=as_json)
    try:
        found = fetch(effective, "tasks", limit=limit)
    except TemporaryError:
        found = _read_log(effective, limit)
    if as_json:
        print_json(found)
        return 0
    rows = [
        (
            task["id"],
            task["role"],
            task["type"],
            task["state"],
            _when(task["created"]),
            _took(task),
            task["completion_tokens"] or "-",
            task["payment"],
            task["error"] or "-",
        )
        for task in found
    ]
    columns = ("task", "we were", "type", "state", "created", "took", "tokens", "payment", "error")
    print_table(columns, rows, empty="There are no tasks yet.")
    return 0


def _read_log(effective: Effective, limit: int, task_id: str = "") -> list[dict[str, Any]]:
    """The task log from disk, with the keys that a running peer gives it."""
    from owm.store import read_tasks, task_view

    path = effective.database_path
    if not path.exists():
        raise TemporaryError(f"no peer runs here and there is no task log at {path}: name its folder with --data-dir")
    return [task_view(entry) for entry in read_tasks(path, limit, task_id)]


def _show_task(effective: Effective, task_id: str, *, as_json: bool) -> int:
    """Everything that is known of one task; inputs and outputs only where they were kept, checked by their hash."""
    found = _read_log(effective, 100, task_id)
    if not found:
        raise UsageError(f"there is no task {task_id!r} in the log: `owm tasks` lists the newest")
    for task in found:
        task["input"], task["output"] = _kept(effective, task)
    if as_json:
        print_json(found)
        return 0
    for task in found:
        for name, value in task.items():
            shown = "not kept (tasks.keep_contents)" if name in ("input", "output") and value is None else value
            click.echo(f"{name.replace('_', ' '):<24} {plain(_cell(shown))}")
        click.echo()
    return 0


def _kept(effective: Effective, task: dict[str, Any]) -> tuple[object, object]:
    import msgspec

    from owm.store import read_content
    from owm.tasks import input_body

    given = read_content(effective.database_path, bytes.fromhex(task["input_hash"]))
    answer = read_content(effective.database_path, bytes.fromhex(task["output_hash"]))
    try:
        body = msgspec.to_builtins(input_body(given)) if given is not None else None
    except msgspec.DecodeError:  # of another version
        body = None
    return body, None if answer is None else answer.text or f"{len(answer.data)} bytes"


def _when(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _took(task: dict[str, Any]) -> str:
    if task.get("finished") is None:
        return "-"
    return f"{task['finished'] - (task.get('started') or task['created']):.2f} s"


@click.command("version")
@json_option
def version_command(as_json: bool) -> int:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(__version__)
    return 0
