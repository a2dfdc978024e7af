"""``owm ask``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from owm.cli._local import find_gateway, local_key
from owm.cli._options import config_options, settings_of
from owm.cli._output import json_option, plain, print_json
from owm.cli._query import Answer, ask
from owm.errors import OwmError

__all__ = ["answer_json", "ask_and_print", "ask_command"]


@click.command("ask")
@click.argument("question")
@click.option("--url", metavar="URL", help="The gateway (default: the one that runs here, else the configured one).")
@click.option("--key", metavar="KEY", help="API key (default: $OWM_API_KEY; a gateway that runs here needs none).")
@click.option("--max-tokens", type=click.IntRange(1, 4096), default=256, show_default=True)
@config_options
@json_option
def ask_command(
    question: str,
    url: str | None,
    key: str | None,
    max_tokens: int,
    config: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> int:
    """Ask the network a question and watch the answer arrive.

    When the peer that was answering dies, the gateway has another begin anew; what was shown before is
    then marked void. Into a pipe or a file goes nothing but the complete answer, when it is there; who gave
    it is then said on standard error.

    \b
    Examples:
      owm ask "What is the capital of France?"
      owm ask --url https://gateway.example --key $KEY --json "How far is the Moon?"
    """
    found, folder = (url, None) if url else find_gateway(settings_of(config, data_dir))
    key = key or os.environ.get("OWM_API_KEY") or (local_key(folder) if folder else None)
    ask_and_print(found, question, max_tokens=max_tokens, key=key, as_json=as_json)
    return 0


def ask_and_print(
    url: str, question: str, *, max_tokens: int, key: str | None, as_json: bool, details: bool = False
) -> Answer:
    """Ask, and print the answer and who gave it.

    On a terminal the answer is shown as it comes. Elsewhere it is printed once it is complete, so that no word of a
    worker that died is ever in it, and who gave it goes to standard error.

    Args:
        as_json: print one JSON object instead.
        details: say who gave it on standard output in any case.

    Raises:
        TemporaryError, UsageError: there is no answer; see :func:`owm.cli._query.ask`.
    """
    terminal = sys.stdout.isatty() and not as_json
    shown: list[str] = []
    try:
        answer = ask(
            url,
            question,
            max_tokens=max_tokens,
            key=key,
            on_text=(lambda text: _show(text, shown)) if terminal else _ignore,
            on_restart=(lambda: _void(shown)) if terminal else _nothing,
        )
    except OwmError:
        if shown:
            click.echo("\n[what stands above is not the whole answer]\n")
        raise
    if as_json:
        print_json(answer_json(answer))
        return answer
    click.echo("\n" if terminal else plain(answer.text))
    _tell(answer, on_error=not (terminal or details))
    return answer


def _tell(answer: Answer, *, on_error: bool) -> None:
    """Who gave the answer, how fast, and whether somebody had to begin anew."""
    found = [
        ("worker", answer.result.get("worker")),
        ("receipt", answer.result.get("receipt_id")),
        ("first token", None if answer.first_token_ms is None else f"{answer.first_token_ms:.0f} ms"),
    ]
    if answer.restarts:
        found.append(("restarts", str(answer.restarts)))
    for name, value in found:
        click.echo(f"{name:<12} {plain(value) if value else '-'}", err=on_error)


def answer_json(answer: Answer) -> dict[str, object]:
    """The object that ``--json`` prints."""
    return {
        **answer.result,
        "answer": answer.text,
        "first_token_ms": None if answer.first_token_ms is None else round(answer.first_token_ms, 1),
        "restarts": answer.restarts,
    }


def _show(text: str, shown: list[str]) -> None:
    shown.append(text)
    sys.stdout.write(plain(text))
    sys.stdout.flush()


def _void(shown: list[str]) -> None:
    shown.clear()
    click.echo("\n[the peer that was answering has gone: what stands above is void, another begins anew]\n")


def _ignore(text: str) -> None:
    """Nothing is shown before the end."""


def _nothing() -> None:
    """Nothing was shown, so there is nothing to take back."""
