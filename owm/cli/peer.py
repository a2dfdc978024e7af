"""``owm peer``."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import click

from owm.cli._options import compiled_option, config_options, settings_of
from owm.config import load_constitution
from owm.errors import TemporaryError, UsageError

__all__ = ["peer_command"]


@click.command("peer")
@config_options
@click.option("--roles", metavar="LIST", help="What to do for others, such as worker,gateway. None: take part only.")
@click.option("--network", "profile", metavar="NAME", help="A shipped network, or the path of a network.toml.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen for peers; port 0 lets the system choose.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A peer to join through; may be repeated.")
@click.option("--api-port", type=click.IntRange(0, 65535), help="Port of the public API (gateways).")
@click.option("--health-port", type=click.IntRange(0, 65535), help="Port of health and metrics, loopback only.")
@click.option("--alias", help="A name for people.")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
@click.option("--log-format", type=click.Choice(["auto", "json", "human"]))
@compiled_option
@click.option("--die-with", type=int, hidden=True, help="Stop when the process with this id, our parent, ends.")
def peer_command(
    config: Path | None,
    data_dir: str | None,
    roles: str | None,
    profile: str | None,
    listen: str | None,
    bootstrap: tuple[str, ...],
    api_port: int | None,
    health_port: int | None,
    alias: str | None,
    log_level: str | None,
    log_format: str | None,
    die_with: int | None,
) -> int:
    """Run a peer in the foreground until Ctrl-C or SIGTERM; what runs is completed first. A second one ends it at once.

    \b
    Examples:
      owm peer --roles worker
      owm peer --roles gateway,worker --listen 0.0.0.0:9000 --bootstrap /ip4/192.0.2.1/tcp/9000
    """
    if die_with is not None:
        _die_with(die_with)
    host, port = _listen(listen)
    effective = settings_of(
        config,
        data_dir,
        node__roles=None if roles is None else [role for part in roles.split(",") if (role := part.strip())],
        node__alias=alias,
        network__profile=profile,
        network__listen_host=host,
        network__listen_port=port,
        network__bootstrap=list(bootstrap) or None,
        api__port=api_port,
        health__port=health_port,
        log__level=log_level,
        log__format=log_format,
    )
    load_constitution(effective.settings.network.profile)  # before what takes a second to import
    from owm import log

    log.configure(effective.settings.log.level, effective.settings.log.format)
    from owm.process import run_peer

    run_peer(effective)
    return 0


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent ends, even by SIGKILL (Linux; elsewhere nothing happens)."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1  # <linux/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        raise TemporaryError("the process that started this peer has ended")


def _listen(text: str | None) -> tuple[str | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(?:(?P<host>\[[^]]+\]|[^:]*):)?(?P<port>\d{1,5})", text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"--listen {text!r}: expected HOST:PORT or PORT, such as 0.0.0.0:9000")
    return (match["host"] or "").strip("[]") or None, int(match["port"])
