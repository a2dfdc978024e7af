"""``owm config``."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, print_json
from owm.config import config_path, load_constitution, render_settings

__all__ = ["config_command"]


@click.group("config")
def config_command() -> None:
    """Show and check the settings. Flags win over environment (OWM_SECTION_KEY) over file over defaults.

    \b
    Examples:
      owm config show --effective
      OWM_API_PORT=8001 owm config show --effective --json
      owm config check --config owm.toml
    """


@config_command.command("show")
@config_options
@click.option("--effective", "all_keys", is_flag=True, help="Every setting and where its value comes from.")
@json_option
def show(config: Path | None, data_dir: str | None, all_keys: bool, as_json: bool) -> int:
    """Show the settings that differ from their defaults, or all with --effective."""
    effective = settings_of(config, data_dir)
    if effective.settings.node.tier_override:
        from owm.cli._peer_checks import override_warning  # it probes the accelerators

        if warning := override_warning(effective):
            click.echo(f"warning: {warning}", err=True)
    values = msgspec.to_builtins(effective.settings)
    shown = {
        section: {
            key: value
            for key, value in keys.items()
            if all_keys or effective.sources.get(f"{section}.{key}") != "default"
        }
        for section, keys in values.items()
    }
    if as_json:
        print_json(
            {
                section: {k: {"value": v, "source": effective.sources[f"{section}.{k}"]} for k, v in keys.items()}
                for section, keys in shown.items()
                if keys
            }
        )
        return 0
    click.echo(render_settings(shown, sources=effective.sources), nl=False)
    return 0


@config_command.command("path")
@json_option
def path(as_json: bool) -> int:
    """Print the file that is read when none is named."""
    file = config_path()
    if as_json:
        print_json({"path": str(file), "exists": file.exists()})
    else:
        click.echo(str(file))
    return 0


@config_command.command("check")
@config_options
@json_option
def check(config: Path | None, data_dir: str | None, as_json: bool) -> int:
    """Check the settings and the network that they name; exit code 3 where something is wrong."""
    effective = settings_of(config, data_dir)
    network = load_constitution(effective.settings.network.profile)
    file = str(effective.path) if effective.path else None
    if as_json:
        print_json({"ok": True, "path": file, "network": network.name, "network_id": network.id})
    else:
        click.echo(f"{file or 'the defaults'}: good. Network {network.name} ({network.id}).")
    return 0
