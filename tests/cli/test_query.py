"""owm ask against a server that speaks the gateway's stream, byte for byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.cli._query import ServerSentEvent, parse_events
from owm.errors import OwmError
from tests.cli._run import Cli

DONE = 'event: done\ndata: {"query_id": "q", "worker": "w-1", "receipt_id": "r-1"}\n\n'


def token(text: str) -> str:
    return f"event: token\ndata: {msgspec.json.encode({'text': text}).decode()}\n\n"


@contextmanager
def gateway(body: str, status: int = 200) -> Iterator[tuple[str, list[dict[str, object]]]]:
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **request})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_answer_its_worker_its_receipt_and_the_time_are_printed(owm: Cli) -> None:
    with gateway(token("Par") + ": comment\n\n" + token("is.") + DONE) as (url, asked):
        outcome = owm("ask", "--url", url, "--key", "k-1", "Where?")
    assert outcome.code == 0
    assert outcome.out == "Paris.\n"
    assert all(part in outcome.err for part in ("w-1", "r-1", " ms"))
    assert asked == [
        {"path": "/v1/query/stream", "key": "Bearer k-1", "query": "Where?", "max_tokens": 256, "stream": True}
    ]


def test_a_restart_drops_what_came_before(owm: Cli) -> None:
    body = token("Lon") + 'event: restart\ndata: {"attempt": 2}\n\n' + token("Paris.") + DONE
    with gateway(body) as (url, _):
        found = owm("ask", "--url", url, "--json", "Where?").json
        piped = owm("ask", "--url", url, "Where?")
    assert (found["answer"], found["restarts"]) == ("Paris.", 1)
    assert piped.out == "Paris.\n" and "restarts     1" in piped.err


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (200, token("Par"), 6, "before the answer was complete"),
        (200, 'event: error\ndata: {"title": "t", "detail": "no worker is left"}\n\n', 6, "no worker is left"),
        (503, '{"detail": "no worker"}', 6, "503: no worker"),
        (429, '{"title": "too many"}', 6, "429: too many"),
        (401, '{"title": "no such key"}', 2, "401: no such key"),
        (200, "event: token\ndata: not json\n\nevent: done\ndata: {}\n\n", 0, ""),
    ],
)
def test_failures_are_told_apart(owm: Cli, status: int, body: str, code: int, said: str) -> None:
    with gateway(body, status) as (url, _):
        outcome = owm("ask", "--url", url, "Where?")
    assert outcome.code == code
    assert said in outcome.err


def test_no_gateway_is_a_clear_error(owm: Cli) -> None:
    outcome = owm("ask", "--url", "http://127.0.0.1:1", "Where?")
    assert outcome.code == 6
    assert "owm devnet" in outcome.err


def test_an_answer_cannot_drive_the_terminal(owm: Cli) -> None:
    with gateway(token("\x1b]0;owned\x07\x1b[2J") + DONE) as (url, _):
        outcome = owm("ask", "--url", url, "Where?")
    assert "\x1b" not in outcome.out and "\x07" not in outcome.out


def test_an_event_that_never_ends_is_refused() -> None:
    with pytest.raises(OwmError, match="too large"):
        list(parse_events(f"data: {'x' * 1000}" for _ in range(2000)))


@given(
    st.lists(st.tuples(st.sampled_from(["token", "done", "x"]), st.text(st.characters(exclude_categories=["C", "Z"]))))
)
def test_events_survive_the_wire(events: list[tuple[str, str]]) -> None:
    lines = [line for name, data in events for line in (f"event: {name}", f"data: {data}", "")]
    assert list(parse_events(lines)) == [ServerSentEvent(name, data) for name, data in events]
