"""Attacks on the logs: make them carry secrets, or forge lines in them."""

from __future__ import annotations

import io
import json
import logging
import os

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from owm import log
from owm.identity import Identity


def lines(format: str = "json") -> tuple[io.StringIO, structlog.typing.FilteringBoundLogger]:
    stream = io.StringIO()
    log.configure("DEBUG", format, stream)
    return stream, structlog.get_logger("test")


SECRET_KEYS = [
    "seed",
    "secret",
    "key",
    "token",
    "macaroon",
    "preimage",
    "authorization",
    "password",
    "apiKey",
    "x_api_key",
]


@pytest.mark.attack("Z5")
@pytest.mark.parametrize("format", ["json", "human"])
def test_no_form_of_the_seed_reaches_the_log(format: str) -> None:
    """The seed goes in by every door that code has; a grep for each of its forms finds nothing."""
    seed = os.urandom(32)
    identity = Identity(seed)
    stream, logger = lines(format)
    hexed = seed.hex()
    logger.info("started with " + hexed, seed=seed, value=seed, identity=identity, other=hexed, upper=hexed.upper())
    logger.info("nested", a={"b": [{"seed": hexed}, (seed, bytearray(seed), memoryview(seed))]})
    logger.info(f"raw {seed!r}".replace(repr(seed), "seed=" + hexed))
    try:
        raise ValueError(f"bad seed {hexed}")
    except ValueError as error:
        logger.exception("failed", error=error)
    logging.getLogger("library").warning("handshake with %s", hexed)
    written = stream.getvalue()
    assert len(written.splitlines()) >= 5
    forms = (hexed, hexed.upper(), repr(seed), repr(seed)[2:-1], str(list(seed)))
    assert sum(form in written for form in forms) == 0
    assert str(identity.peer_id)[-8:] in written


@pytest.mark.attack("Z5")
@pytest.mark.parametrize("name", SECRET_KEYS)
def test_a_value_under_a_name_of_secrets_is_redacted(name: str) -> None:
    stream, logger = lines()
    logger.info("x", **{name: "hunter2hunter2"}, deep={name: ["hunter2hunter2"]})
    assert stream.getvalue().count("hunter2") == 0
    assert stream.getvalue().count(log.REDACTED) == 2


@pytest.mark.attack("Z5")
@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefgh12345678",
        "owm_abcdefghijklmnopqrstuvwxyz",
        "sk-abcdefghijklmnopqrst",
        "L402 AGIAJEemVQUTEyNCR0exk7ek90Cg==:1234abcd",
        "POST /?token=abcdefgh12345678",
        "macaroon: AGIAJEemVQUTEyNCR0exk7ek90Cg",
    ],
)
def test_credentials_inside_text_are_redacted(text: str) -> None:
    stream, logger = lines()
    logger.info(text, header=text, error=ValueError(text))
    logging.getLogger("library").error(text)
    secrets = ("abcdefgh12345678", "ijklmnopqrst", "AGIAJEem")
    assert sum(secret in stream.getvalue() for secret in secrets) == 0


def test_what_operators_need_is_not_redacted() -> None:
    stream, logger = lines()
    digest = "ab" * 32
    peer = Identity(bytes(32)).peer_id
    logger.info("x", model_sha256=digest, receipt_id=digest, peer=peer, tokens=7, max_tokens=9, public_key="12ab")
    found = json.loads(stream.getvalue())
    assert found["model_sha256"] == found["receipt_id"] == digest
    assert (found["peer"], found["tokens"], found["max_tokens"], found["public_key"]) == (str(peer), 7, 9, "12ab")


FORGERY = (
    '\r\n{"event": "admin logged in", "level": "info"}\n'
    "2026-01-01 [info     ] forged\x1b[2J\x1b]0;x\x07\x85\u2028\u202e"
)


@pytest.mark.attack("Z5")
@pytest.mark.parametrize("format", ["json", "human"])
def test_a_stranger_cannot_forge_a_line_or_drive_the_terminal(format: str) -> None:
    stream, logger = lines(format)
    logger.info("from a peer", agent=FORGERY, **{f"k{FORGERY}": 1}, nested=[FORGERY])
    logging.getLogger("library").error(FORGERY)
    written = stream.getvalue()
    assert len(written.splitlines()) == 2
    assert [c for c in written if c in "\x1b\x07\r\x85\u2028\u202e"] == []


@pytest.mark.attack("Z5")
def test_an_exception_s_message_cannot_start_a_line() -> None:
    stream, logger = lines("human")
    try:
        raise RuntimeError(FORGERY)
    except RuntimeError:
        logger.exception("failed")
    first, *trace = stream.getvalue().splitlines()
    assert "failed" in first
    assert len(trace) > 3
    assert [line for line in trace if line and not line.startswith("    | ")] == []


@pytest.mark.attack("Z5")
def test_a_huge_value_takes_a_bounded_line() -> None:
    stream, logger = lines()
    logger.info("x", text="a" * 10_000_000, many=list(range(100_000)))
    assert len(stream.getvalue()) < 10_000


_LEAVES = st.none() | st.text() | st.binary() | st.integers()


@given(st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_value_makes_one_line_of_json(value: object) -> None:
    stream, logger = lines()
    logger.info("x", value=value)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "x"


def test_levels_below_the_threshold_and_chatty_libraries_are_silent() -> None:
    stream = io.StringIO()
    log.configure("INFO", "json", stream)
    structlog.get_logger("a").debug("no")
    logging.getLogger("library").info("no")
    assert stream.getvalue() == ""
