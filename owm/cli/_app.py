"""The root command and what turns errors into messages and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

import click

from owm import __version__
from owm.errors import OwmError

__all__ = ["COMMANDS", "app", "main", "node_main"]

#: Name, module and one line of help; so that ``owm --help`` imports none of the modules. Commands without a module come
#: from packages that build on this one, as entry points of the group ``owm.commands``.
COMMANDS: Final = {
    "init": ("init", "Make an identity and a commented owm.toml."),
    "peer": ("peer", "Run a peer in the foreground."),
    "ask": ("ask", "Ask the network a question and watch the answer arrive."),
    "status": ("local", "Show what the local peer is and does."),
    "peers": ("local", "List the peers that the local peer knows."),
    "tasks": ("local", "List the newest tasks of the local task log."),
    "models": ("models", "List, pull and add the models of this machine."),
    "keys": ("keys", "Issue, list and revoke the API keys of a gateway."),
    "config": ("config", "Show and check the settings."),
    "devnet": ("devnet", "Start a network of real processes on this machine."),
    "doctor": ("doctor", "Check this machine and say what to do about what is wrong."),
    "simulate": ("", "Run the network simulator."),
    "version": ("local", "Print the version."),
}

EXIT_CODES: Final = {
    0: "success",
    1: "failure",
    2: "usage: the command line makes no sense",
    3: "config: a setting is missing or wrong",
    4: "identity: the key is missing, damaged or can be read by others",
    5: "peer: another peer broke the protocol",
    6: "temporary: the network, a process or the disk failed; trying again may work",
    130: "interrupted",
}


class _LazyGroup(click.Group):
    """Finds commands by name in :data:`COMMANDS` and imports their module only when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = COMMANDS[cmd_name][0]
        if name:
            command = getattr(import_module(f"owm.cli.{name}"), f"{cmd_name}_command")
        else:
            found = entry_points(group="owm.commands", name=cmd_name)
            if not found:
                raise click.UsageError(f"`owm {cmd_name}` is not installed: run `make setup` again")
            command = next(iter(found)).load()
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f": did you mean `owm {near[0]}`?" if near else ": `owm --help` lists the commands"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 failure, 2 usage, 3 config, 4 identity, 5 peer, 6 temporary, 130 interrupted.",
)
@click.version_option(__version__, prog_name="owm")
def app() -> None:
    """Open World Model: a peer-to-peer network in which many models answer as one.

    \b
    Examples:
      owm devnet                       a network of three peers on this machine
      owm ask "Why is the sky blue?"   ask it
      owm init && owm peer --roles worker --bootstrap /ip4/192.0.2.1/tcp/9000
    """


def main(args: list[str] | None = None) -> None:
    """Run ``owm`` and exit with the code that the outcome has."""
    sys.exit(run(app, sys.argv[1:] if args is None else args))


def run(command: click.Command, args: list[str]) -> int:
    """Run one command line; prints errors without a traceback and returns the exit code."""
    as_json = "--json" in args
    try:
        result = command.main(args, prog_name="owm", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        if as_json:
            _complain(error.format_message(), 2, as_json)
        else:
            error.show()
        return int(error.exit_code)
    except OwmError as error:
        _complain(str(error), error.exit_code, as_json)
        return error.exit_code
    except BaseExceptionGroup as group:
        known, rest = group.split(OwmError)
        if known is None or rest is not None:
            if group.split(KeyboardInterrupt)[1] is None:
                return 130
            raise
        first = next(_leaves(known))
        _complain(str(first), first.exit_code, as_json)
        return int(first.exit_code)
    return int(result) if isinstance(result, int) else 0


def _leaves(group: BaseExceptionGroup[OwmError]) -> Iterator[OwmError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _complain(message: str, code: int, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": message, "exit_code": code}), err=True)
    else:
        click.echo(f"Error: {message}", err=True)


def node_main(args: list[str] | None = None) -> None:
    """``owm-node start --config owm.toml`` is ``owm peer --config owm.toml`` (SRS-NODE-01)."""
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["start"]:
        main(["peer", *given[1:]])
    if given[:1] in (["--version"], ["--help"], ["-h"]) or not given:
        click.echo(f"owm-node {__version__}\n\nUsage: owm-node start [OPTIONS]\n\nThe options are those of `owm peer`.")
        sys.exit(0 if given else 2)
    click.echo(f"Error: owm-node knows only `start`, not {given[0]!r}", err=True)
    sys.exit(2)
