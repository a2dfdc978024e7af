"""``owm keys``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, print_json, print_table

if TYPE_CHECKING:
    from owm.api.keys import KeyStore

__all__ = ["keys_command"]


@click.group("keys")
def keys_command() -> None:
    """Issue, list and revoke the API keys of a gateway. A gateway that runs notices within a second.

    \b
    Examples:
      owm keys add --label "my application"
      owm keys add --label tests --per-day 0 --json
      owm keys revoke key_0123456789ab
    """


@contextmanager
def _store(config: Path | None, data_dir: str | None) -> Iterator[KeyStore]:
    from owm.api.keys import KeyStore

    store = KeyStore(settings_of(config, data_dir).keys_path)
    try:
        yield store
    finally:
        store.close()


@keys_command.command("add")
@click.option("--label", required=True, help="A name for people.")
@click.option(
    "--per-day", type=click.IntRange(min=0), help="Requests in 24 hours; 0 for no limit (default: the setting)."
)
@config_options
@json_option
def add(label: str, per_day: int | None, config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Make a key. The secret is printed once and stored nowhere."""
    limit = settings_of(config, data_dir).settings.api.requests_per_day if per_day is None else per_day
    with _store(config, data_dir) as store:
        made = store.add(label, limit)
    if as_json:
        print_json({**msgspec.to_builtins(made.key), "secret": made.secret})
    else:
        click.echo(f"{made.key.id}  {'no limit' if not limit else f'{limit} requests a day'}")
        click.echo("The secret, which is not shown again:", err=True)
        click.echo(made.secret)
    return 0


@keys_command.command("list")
@config_options
@json_option
def list_keys(config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """List the keys, revoked ones included."""
    with _store(config, data_dir) as store:
        keys = store.list()
    if as_json:
        print_json(msgspec.to_builtins(keys))
        return 0
    rows = [
        (key.id, key.name, key.per_day or "no limit", _day(key.created), _day(key.revoked) if key.revoked else "-")
        for key in keys
    ]
    print_table(
        ("key", "label", "per day", "made", "revoked"), rows, empty="There are no keys: `owm keys add` makes one."
    )
    return 0


@keys_command.command("revoke")
@click.argument("key_id")
@config_options
@json_option
def revoke(key_id: str, config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """End a key's validity."""
    with _store(config, data_dir) as store:
        key = store.revoke(key_id)
    if as_json:
        print_json(msgspec.to_builtins(key))
    else:
        click.echo(f"{key.id} ({key.name}) is revoked.")
    return 0


def _day(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))
