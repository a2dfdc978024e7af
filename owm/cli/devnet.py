"""``owm devnet``."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import click
import trio

from owm.cli._devnet import Devnet, plan
from owm.cli._local import DEVNET_FILE, local_key
from owm.cli._options import compiled_option, settings_of
from owm.cli._output import json_option
from owm.cli.ask import ask_and_print
from owm.errors import UsageError

__all__ = ["devnet_command"]


@click.command("devnet")
@click.option("--peers", type=click.IntRange(2, 64), help="One gateway, all others workers.")
@click.option("--workers", type=click.IntRange(0, 64), help="How many workers (default: 2).")
@click.option("--gateways", type=click.IntRange(1, 16), help="How many gateways (default: 1).")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Keep the peers' data here (default: temporary)."
)
@click.option("--ask", "question", metavar="QUESTION", help="Ask this, print the answer, stop.")
@click.option("--max-tokens", type=click.IntRange(1, 4096), default=256, show_default=True, help="With --ask.")
@compiled_option
@json_option
def devnet_command(
    peers: int | None,
    workers: int | None,
    gateways: int | None,
    folder: Path | None,
    question: str | None,
    max_tokens: int,
    as_json: bool,
) -> int:
    """Start a network of real processes on this machine, and show it until Ctrl-C.

    Every peer but the first is given only the first one's address; the gateway learns of the workers by gossip and DHT.
    With --json and --ask one JSON object is printed.

    \b
    Examples:
      owm devnet
      owm devnet --peers 5 --ask "What is the capital of France?"
    """
    if peers is not None and (workers is not None or gateways is not None):
        raise UsageError("--peers stands alone: it means one gateway and the rest workers")
    if peers is not None:
        workers, gateways = peers - 1, 1
    workers, gateways = 2 if workers is None else workers, gateways or 1
    if question is not None and workers == 0:
        raise UsageError("--ask needs a worker")
    with tempfile.TemporaryDirectory(prefix="owm-devnet-") as temporary:
        members = plan(folder.resolve() if folder else Path(temporary), workers, gateways)
        return trio.run(partial(_run, Devnet(members), question, max_tokens, as_json))


async def _run(devnet: Devnet, question: str | None, max_tokens: int, as_json: bool) -> int:
    state = settings_of(None, None).data_dir / DEVNET_FILE
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(_stop_on_signals, signals, scope, devnet)
            outcome = 130
            try:
                with scope:
                    outcome = await _use(devnet, state, question, max_tokens, as_json)
            finally:
                state.unlink(missing_ok=True)
                await devnet.stop()
            nursery.cancel_scope.cancel()
    return outcome if question is not None else 0


async def _use(devnet: Devnet, state: Path, question: str | None, max_tokens: int, as_json: bool) -> int:
    """Start the peers, then ask the question, or show them until cancelled."""
    if not as_json:
        click.echo(f"Starting {len(devnet.members)} peers ...", err=True)
    await devnet.start()
    if any("worker" in member.roles for member in devnet.members):
        await devnet.wait_usable()
    _remember(devnet, state)
    if question is not None:
        key = local_key(devnet.gateway.folder)
        ask = partial(
            ask_and_print,
            devnet.gateway_url,
            question,
            max_tokens=max_tokens,
            key=key,
            as_json=as_json,
            details=True,
        )
        await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
    else:
        await _show(devnet, as_json)
    return 0


def _remember(devnet: Devnet, state: Path) -> None:
    """For the other commands to find the devnet by."""
    state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.write_text(json.dumps({"data_dirs": [str(member.folder) for member in devnet.members]}))


async def _stop_on_signals(signals: AsyncIterator[int], scope: trio.CancelScope, devnet: Devnet) -> None:
    """The first one stops the peers in order, which completes what they do; the second one ends them at once."""
    async for _ in signals:
        if scope.cancel_called:
            devnet.kill()
        else:
            click.echo("Stopping: what runs is completed; Ctrl-C again cuts it.", err=True)
            scope.cancel()


async def _show(devnet: Devnet, as_json: bool) -> None:
    from owm.cli._devnet_view import describe, show_live

    if as_json:
        click.echo(json.dumps(await describe(devnet)))
        await trio.sleep_forever()
    key = local_key(devnet.gateway.folder)
    curl = (
        f"curl -N {devnet.gateway_url}/v1/query/stream -H 'Authorization: Bearer {key}' "
        "-H 'Content-Type: application/json' "
        """-d '{"query": "What is the capital of France?"}'"""
    )
    click.echo(f"\n  Open    {devnet.gateway_url}/\n  Or      {curl}\n  Stop    Ctrl-C\n")
    await show_live(devnet, live=sys.stdout.isatty())
