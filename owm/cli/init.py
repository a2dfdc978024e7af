"""``owm init``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from owm.cli._options import settings_of
from owm.cli._output import json_option, print_json
from owm.errors import ConfigError

__all__ = ["init_command"]


@click.command("init")
@click.option("--data-dir", metavar="DIR", help="Where to put identity and settings (default: ~/.owm).")
@click.option("--roles", default="", metavar="LIST", help="Roles to write into owm.toml, such as worker,gateway.")
@click.option("--alias", default="", help="A name for people.")
@click.option("--force", is_flag=True, help="Write owm.toml anew where there is one. The identity is always kept.")
@json_option
def init_command(data_dir: str | None, roles: str, alias: str, force: bool, as_json: bool) -> int:
    """Make an identity and a commented owm.toml. An identity that exists is kept.

    \b
    Examples:
      owm init
      owm init --data-dir /srv/owm --roles worker --alias "my first worker"
    """
    from owm.config import Settings, render_settings
    from owm.identity import Identity

    wanted = [role for part in roles.split(",") if (role := part.strip())]
    effective = settings_of(None, None, node__data_dir=data_dir, node__roles=wanted or None, node__alias=alias or None)
    folder = effective.data_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    existed = effective.identity_path.exists()
    identity = Identity.load_or_create(effective.identity_path)
    file = folder / "owm.toml"
    written = force or not file.exists()
    if written:
        values = {
            "node": {"roles": wanted, "alias": alias, "data_dir": str(folder) if data_dir else Settings().node.data_dir}
        }
        _write(file, render_settings(values))
    if as_json:
        print_json(
            {
                "peer_id": str(identity.peer_id),
                "identity": str(effective.identity_path),
                "identity_created": not existed,
                "config": str(file),
                "config_written": written,
            }
        )
        return 0
    click.echo(f"{'Kept' if existed else 'Made'} the identity {effective.identity_path}")
    click.echo(f"{'Wrote' if written else 'Kept'} the settings {file}")
    click.echo(f"Peer id: {identity.peer_id}\n")
    named = f" --config {file}" if data_dir else ""
    click.echo(f"Next: owm doctor{named}       check this machine")
    click.echo("      owm models pull    fetch the default models")
    click.echo(f"      owm peer{named} --roles worker --bootstrap MULTIADDR")
    return 0


def _write(file: Path, text: str) -> None:
    new = file.with_suffix(".toml.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
