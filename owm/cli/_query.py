"""A client of ``/v1/query/stream``: one question, the answer as it comes, and who gave it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec

from owm.errors import OwmError, TemporaryError, UsageError

__all__ = ["Answer", "ServerSentEvent", "ask", "parse_events"]

_MAX_EVENT_CHARACTERS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of https://html.spec.whatwg.org/multipage/server-sent-events.html, its data already joined."""

    event: str
    data: str


@dataclass
class Answer:
    """What came back."""

    text: str = ""
    first_token_ms: float | None = None  #: from sending the question to the first text that was kept
    restarts: int = 0  #: how often another worker had to begin anew
    result: dict[str, Any] = field(default_factory=dict)  #: the last event: query id, worker, receipt and so on


def parse_events(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Events from the lines of a stream; an event that never ends is an error.

    Raises:
        OwmError: an event is larger than a sane gateway sends.
    """
    event, data, size = "message", list[str](), 0
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(event, "\n".join(data))
            event, data, size = "message", [], 0
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        size += len(line)
        if size > _MAX_EVENT_CHARACTERS:
            raise OwmError("the gateway sent an event that is too large")
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)


def ask(
    url: str,
    question: str,
    *,
    max_tokens: int,
    key: str | None,
    on_text: Callable[[str], None],
    on_restart: Callable[[], None],
    timeout: float = 180.0,
) -> Answer:
    """Ask a gateway and follow the stream to its end.

    Args:
        on_text: gets each piece of the answer.
        on_restart: what came so far is void; the answer begins anew.

    Raises:
        TemporaryError: the gateway cannot be reached, or the network could not answer.
        UsageError: the gateway refused the question or the key.
    """
    answer = Answer()
    started = time.monotonic()
    headers = {"Accept": "text/event-stream", **({"Authorization": f"Bearer {key}"} if key else {})}
    body = {"query": question, "max_tokens": max_tokens, "stream": True}
    try:
        with httpx.stream(
            "POST", f"{url.rstrip('/')}/v1/query/stream", json=body, headers=headers, timeout=httpx.Timeout(timeout)
        ) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                detail = _detail(response.text, response.reason_phrase)
                if response.status_code in (408, 429) or response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                    raise TemporaryError(f"the gateway answered {response.status_code}: {detail}")
                raise UsageError(f"the gateway answered {response.status_code}: {detail}")
            for event in parse_events(response.iter_lines()):
                if _apply(event, answer, started, on_text, on_restart):
                    return answer
    except httpx.HTTPError as error:
        raise TemporaryError(
            f"no answer from the gateway {url} ({type(error).__name__}): is it running? `owm devnet` starts one here; "
            "--url names another"
        ) from error
    raise TemporaryError("the gateway ended the stream before the answer was complete")


def _apply(
    event: ServerSentEvent,
    answer: Answer,
    started: float,
    on_text: Callable[[str], None],
    on_restart: Callable[[], None],
) -> bool:
    """Take one event in; whether it was the last."""
    data = _object(event.data)
    match event.event:
        case "restart":
            answer.text, answer.first_token_ms = "", None
            answer.restarts += 1
            on_restart()
        case "error":
            raise TemporaryError(_detail(event.data, "the network could not answer"))
        case "done":
            answer.result = data
            return True
        case "token" | "message":
            text = data.get("text")
            if isinstance(text, str) and text:
                if answer.first_token_ms is None:
                    answer.first_token_ms = (time.monotonic() - started) * 1000
                answer.text += text
                on_text(text)
    return False


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _detail(text: str, otherwise: str) -> str:
    found = _object(text)
    return str(found.get("detail") or found.get("title") or otherwise)
