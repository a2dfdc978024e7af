"""What must hold of what a client received after a kill; each check raises :class:`Failed` with words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

__all__ = [
    "TOKENS_BEFORE_KILL",
    "Failed",
    "check_chat_cut",
    "check_none_left",
    "check_refused",
    "check_restarted",
    "check_whole",
    "expect",
    "tokens_of",
]

TOKENS_BEFORE_KILL: Final = 5

Events = Sequence[tuple[str, Any]]
"""(name, decoded data) of server-sent events, in their order."""


class Failed(Exception):
    """An expectation did not hold."""


def expect(holds: bool, what: str) -> None:
    """Raise :class:`Failed` unless it holds."""
    if not holds:
        raise Failed(what)


def tokens_of(events: Events) -> str:
    """The text of the token events, joined."""
    return "".join(data["text"] for name, data in events if name == "token")


def check_restarted(events: Events) -> None:
    """Exactly one restart, after five tokens; what follows it is the whole answer and nothing else."""
    names = [name for name, _ in events]
    expect(names.count("restart") == 1, f"expected one restart, got {names.count('restart')}: {events[-1:]}")
    expect(names.count("error") == 0 and names[-1] == "done", f"the stream ended with {events[-1]}")
    cut = names.index("restart")
    expect(names[:cut].count("token") >= TOKENS_BEFORE_KILL, "the restart came before five tokens")
    text = tokens_of(events[cut:])
    expect(bool(text) and text == events[-1][1]["answer"], "what follows the restart is not the answer")
    expect(events[-1][1]["attempts"] == 2, f"attempts: {events[-1][1]['attempts']}")


def check_whole(events: Events) -> None:
    """Nothing had been sent when the first worker died: one answer, from its beginning, and no word of the other."""
    names = [name for name, _ in events]
    expect(bool(names) and names[-1] == "done", f"the stream ended with {events[-1:]}")
    expect(set(names) == {"token", "done"}, f"the client was told of the death: {sorted(set(names))}")
    done = events[-1][1]
    expect(bool(done["answer"]) and tokens_of(events) == done["answer"], "the tokens are not the answer")
    expect(done["attempts"] == 2, f"attempts: {done['attempts']}")


def check_none_left(events: Events) -> None:
    """One clear error at the end; after a restart not a single token, for nobody was left to begin anew."""
    names = [name for name, _ in events]
    expect(names.count("error") == 1 and names[-1] == "error", f"expected one error at the end: {events[-1:]}")
    expect("done" not in names, "an error and an end")
    expect(names.count("restart") <= 1, f"{names.count('restart')} restarts")
    if "restart" in names:
        expect("token" not in names[names.index("restart") :], "tokens follow the restart though no worker was left")
    expect(names.count("token") >= TOKENS_BEFORE_KILL, "the worker was killed before five tokens")
    check_refused(events[-1][1].get("status", 0), events[-1][1])


def check_refused(status: int, problem: dict[str, Any]) -> None:
    """One clear error: no worker is there, said in words, and it names no peer."""
    expect(status == 503, f"expected 503, got {status}: {problem}")
    expect(len(str(problem.get("detail", ""))) > 10, f"the error says nothing: {problem}")


def check_chat_cut(chunks: Sequence[Any]) -> None:
    """An OpenAI stream that had begun: one error chunk, then the end; not even ``[DONE]``, and no second answer."""
    errors = [at for at, chunk in enumerate(chunks) if isinstance(chunk, dict) and "error" in chunk]
    expect(len(errors) == 1, f"expected one error chunk, got {len(errors)}: {chunks[-1:]}")
    expect(errors[0] == len(chunks) - 1, f"{len(chunks) - 1 - errors[0]} chunks follow the error")
    error = chunks[-1]["error"]
    expect(bool(error.get("message")) and error.get("type") == "server_error", f"not an OpenAI error: {error}")
    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
    pieces = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
    expect(len(pieces) >= TOKENS_BEFORE_KILL, "the error came before five tokens")
    expect(not any(choice.get("finish_reason") for choice in choices), "the answer was finished, and then failed")
