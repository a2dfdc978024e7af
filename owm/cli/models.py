"""``owm models``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, print_json, print_table
from owm.config import expand

if TYPE_CHECKING:
    from owm.model import ModelCache, ModelCard

__all__ = ["models_command"]

_MIB = 2**20


@click.group("models")
def models_command() -> None:
    """List, pull and add the models of this machine. Every file is checked against its pinned SHA-256.

    \b
    Examples:
      owm models list
      owm models pull
      owm models add ./my-model.gguf --id my-model
    """


def _cache(config: Path | None, data_dir: str | None) -> ModelCache:
    from owm.model import ModelCache

    return ModelCache(expand(settings_of(config, data_dir).settings.model.model_cache_dir))


def _shown(cache: ModelCache, card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "kind": card.kind,
        "title": card.title,
        "size": card.size,
        "license": card.license,
        "sha256": card.sha256,
        "present": cache.is_present(card),
        "path": str(cache.path(card)),
    }


@models_command.command("list")
@click.option("--verify", is_flag=True, help="Hash the files that are here; exit code 3 where one is damaged.")
@config_options
@json_option
def list_models(verify: bool, config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """List the models that are shipped or were added, and which are here."""
    cache = _cache(config, data_dir)
    cards = cache.cards()
    if verify:
        for card in cards:
            if cache.is_present(card):
                cache.verify(card)
    shown = [_shown(cache, card) for card in cards]
    if as_json:
        print_json(shown)
        return 0
    rows = [
        (row["id"], row["kind"], f"{row['size'] / _MIB:.0f} MiB", row["license"] or "-", row["sha256"][:12],
         "yes" if row["present"] else "no")
        for row in shown
    ]  # fmt: skip
    print_table(("model", "kind", "size", "licence", "sha256", "here"), rows, empty="There are no models.")
    return 0


@models_command.command("pull")
@click.argument("model", nargs=-1)
@config_options
@json_option
def pull(model: tuple[str, ...], config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Fetch models; without a name the chat and the embedding model of the settings. Whole files are kept.

    A pull that was broken off goes on where it stopped.
    """
    settings = settings_of(config, data_dir).settings.model
    cache = _cache(config, data_dir)
    wanted = model or tuple(name for name in (settings.chat, settings.embedding) if name)
    cards = [cache.card(name) for name in wanted]
    fetched = {}
    with _progress(quiet=as_json) as progress:
        for card in cards:
            fetched[card.id] = cache.pull(card, progress)
            cache.verify(card)
    if as_json:
        print_json([{**_shown(cache, card), "fetched": fetched[card.id]} for card in cards])
        return 0
    for card in cards:
        click.echo(f"{card.id}: {'fetched' if fetched[card.id] else 'already here'}, {cache.folder / card.id}")
    return 0


@models_command.command("add")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "name", default="", help="How to call it (default: the file's name).")
@config_options
@json_option
def add(file: Path, name: str, config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Take a GGUF file into the model folder; `model.chat` then names it."""
    cache = _cache(config, data_dir)
    with _progress(quiet=as_json) as progress:
        card = cache.add(file, name, progress)
    if as_json:
        print_json(_shown(cache, card))
    else:
        click.echo(f'{card.id}: added. Serve it with `chat = "{card.id}"` under [model].')
    return 0


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on a terminal; elsewhere a line at every tenth."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def update(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total or None)
            bar.update(tasks[file], completed=done, total=total or None)

        yield update


def _lines() -> Callable[[str, int, int], None]:
    said: dict[str, int] = {}

    def update(file: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 0
        if said.get(file) != tenth:
            said[file] = tenth
            amount = f": {done / _MIB:.0f} of {total / _MIB:.0f} MiB" if total else ""
            click.echo(f"{file}{amount}", err=True)

    return update
