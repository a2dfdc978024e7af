"""The kill script: its checks tell a clean end from a bad one, and its essential cases hold on real processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from scripts import kill_tests
from scripts._kill_checks import (
    Failed,
    check_chat_cut,
    check_none_left,
    check_refused,
    check_restarted,
    check_whole,
)

TOKENS = [("token", {"text": f"w{n} "}) for n in range(6)]
RESTART = ("restart", {"reason": "lost"})
ERROR = ("error", {"status": 503, "detail": "no worker is available now"})
NEW = [("token", {"text": "new "}), ("token", {"text": "answer"})]


def done(answer: str, attempts: int = 2) -> tuple[str, Any]:
    return ("done", {"answer": answer, "attempts": attempts})


@pytest.mark.parametrize(
    ("check", "events", "why"),
    [
        (check_restarted, [*TOKENS, RESTART, *NEW, done("new answer")], ""),
        (check_restarted, [*TOKENS, *NEW, done("new answer")], "one restart"),
        (check_restarted, [*TOKENS, RESTART, *NEW, done("w0 new answer")], "not the answer"),
        (check_restarted, [*TOKENS[:3], RESTART, *NEW, done("new answer")], "before five tokens"),
        (check_restarted, [*TOKENS, RESTART, *NEW, ERROR], "ended with"),
        (check_whole, [*NEW, done("new answer")], ""),
        (check_whole, [*NEW, RESTART, *NEW, done("new answer")], "was told"),
        (check_whole, [*TOKENS, *NEW, done("new answer")], "not the answer"),
        (check_whole, [*NEW, done("new answer", attempts=1)], "attempts"),
        (check_none_left, [*TOKENS, RESTART, ERROR], ""),
        (check_none_left, [*TOKENS, RESTART, *NEW, ERROR], "tokens follow the restart"),
        (check_none_left, [*TOKENS, RESTART, *NEW, done("new answer")], "one error"),
        (check_none_left, [*TOKENS, RESTART, ERROR, ERROR], "one error"),
        (check_none_left, [*TOKENS, RESTART, ("error", {"status": 503})], "says nothing"),
        (check_none_left, [*TOKENS, RESTART, ("error", {"status": 500, "detail": "it went wrong"})], "expected 503"),
    ],
)
def test_the_checks_of_a_stream(
    check: Callable[[Sequence[tuple[str, Any]]], None], events: list[tuple[str, Any]], why: str
) -> None:
    if why:
        with pytest.raises(Failed, match=why):
            check(events)
    else:
        check(events)


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


CUT: dict[str, Any] = {"error": {"message": "the worker was lost", "type": "server_error"}}
WORDS = [chunk(f"w{n}") for n in range(5)]


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        ([*WORDS, CUT], ""),
        ([*WORDS, CUT, "[DONE]"], "1 chunks follow"),
        ([*WORDS, CUT, chunk("new")], "1 chunks follow"),
        ([*WORDS, CUT, CUT], "2"),
        ([*WORDS, "[DONE]"], "got 0"),
        ([*WORDS[:3], CUT], "before five tokens"),
        ([*WORDS, chunk("", "stop"), CUT], "finished"),
        ([*WORDS, {"error": {"message": ""}}], "not an OpenAI error"),
    ],
)
def test_the_check_of_a_stream_in_openais_dialect(chunks: list[Any], why: str) -> None:
    if why:
        with pytest.raises(Failed, match=why):
            check_chat_cut(chunks)
    else:
        check_chat_cut(chunks)


def test_a_refusal_has_words() -> None:
    check_refused(503, {"detail": "no worker is available now"})
    with pytest.raises(Failed):
        check_refused(200, {"detail": "no worker is available now"})


def test_every_round_holds_every_case() -> None:
    pair, alone = kill_tests.steps(())
    assert [step.name for step in pair] == [
        "first peer",
        *(f"{case} {victim}" for case in ("streamed", "not streamed", "nothing sent", "chat")
          for victim in ("engine", "worker")),
    ]  # fmt: skip
    assert len(alone) == 8 and len({step.name for step in pair + alone}) == 17


def test_one_failure_is_a_failure_and_no_case_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (kill_tests.Outcome(1, "chat", 1.0, ok) for ok in (True, False))
    assert kill_tests.summary([good], 1.0)["ok"] and not kill_tests.summary([good, bad], 1.0)["ok"]
    with pytest.raises(SystemExit, match="2"):
        kill_tests.main(["--only", "nonesuch"])
    assert "no case" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_essential_cases_hold_on_real_processes(capsys: pytest.CaptureFixture[str]) -> None:
    essential = ("first peer", "streamed worker", "chat engine", "nothing sent engine")
    only = [part for name in essential for part in ("--only", name)]
    code = kill_tests.main(["--rounds", "1", "--json", *only])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert found["failed"] == 0 and len(found["outcomes"]) == 9
    assert {"first peer", "none left streamed worker", "chat engine, alone"} <= set(found["cases"])
