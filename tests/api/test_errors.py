"""Every refusal and failure of the API: a problem document that says what happened and what to do, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio

from owm.api import ApiError, BadRequest, Busy, NoWorker, PromptTooLarge, TimedOut, WorkFailed
from owm.api._openapi import document
from tests.api._gateway import ScriptedNetwork, Served, raw, served

SECRET = "hunter2-in-an-exception"


def raising(error: Exception) -> Callable[[], object]:
    def fault() -> object:
        raise error

    return fault


def problem_of(response: httpx.Response, status: int) -> dict[str, object]:
    """The problem, after checking what holds for all of them (SRS-API-01, SRS-API-04)."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-OWM-Model-Version"]
    assert response.headers["X-OWM-OTS-Verified"] == "false"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return checked(response.content, status)


def checked(body: bytes, status: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(body)
    assert found["status"] == status
    assert re.fullmatch(r"urn:owm:problem:[a-z-]+", str(found["type"]))
    assert found["title"] and found["title"] != found["detail"]
    assert set(found) <= {"type", "title", "status", "detail", "field"}
    for leak in ("Traceback", 'File "', SECRET, "worker-peer-id", "/work/", ".py"):
        assert leak not in body.decode()
    return found


async def ask(
    gateway: Served, body: bytes = b'{"query": "Hello"}', path: str = "/v1/query", **headers: str
) -> httpx.Response:
    async with gateway.client(**headers) as client:
        return await client.post(path, content=body, headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("body", "status", "field", "says"),
    [
        (b"", 400, None, "not JSON"),
        (b"{", 400, None, "not JSON"),
        (b"\xff\xfe", 400, None, "not JSON"),
        (b'{"query": "\\ud800"}', 400, None, "not JSON"),
        (b"[]", 422, "$", "openapi.json"),
        (b"{}", 422, "$", "`query`"),
        (b'{"query": 1}', 422, "$.query", "Expected `str`"),
        (b'{"query": ""}', 422, "$.query", "length >= 1"),
        (b'{"query": "x", "nonsense": 1}', 422, "$", "unknown field `nonsense`"),
        (b'{"query": "x", "max_tokens": 0}', 422, "$.max_tokens", ">= 1"),
        (b'{"query": "x", "max_tokens": 32769}', 422, "$.max_tokens", "<= 32768"),
        (b'{"query": "x", "max_tokens": 1e99}', 422, "$.max_tokens", "Expected `int`"),
        (
            b'{"query": "x", "context": {"messages": [{"role": "root", "content": ""}]}}',
            422,
            "$.context.messages[0].role",
            "'root'",
        ),
        (b'{"query": "%s"}' % (b"word " * 1000), 413, "$.query", "shorten it"),
        (b'{"query": "%s"}' % (b"x" * 2_000_000), 413, None, "send less"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_a_bad_body_is_refused_before_any_work(
    gateway: Served, body: bytes, status: int, field: str | None, says: str
) -> None:
    """A11; the field at fault is named."""
    for path in ("/v1/query", "/v1/query/stream"):
        found = problem_of(await ask(gateway, body, path), status)
        assert found.get("field") == field
        assert says in str(found["detail"])
    assert gateway.network.asked == []


async def test_the_body_must_be_declared_as_json(gateway: Served) -> None:
    """A form of a foreign site can declare neither JSON nor nothing."""
    async with gateway.client() as client:
        for declared in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            headers = {"Content-Type": declared} if declared else {}
            response = await client.post("/v1/query", content=b'{"query": "x"}', headers=headers)
            assert "Content-Type: application/json" in str(problem_of(response, 415)["detail"])
    assert gateway.network.asked == []


async def test_unknown_paths_and_methods_are_problems(gateway: Served) -> None:
    async with gateway.client() as client:
        for path in ("/v2/query", "/v1/query/a/b", "/v1", "/page/index.html", "/page/%2e%2e/app.py", "/.env"):
            problem_of(await client.get(path), 404)
        wrong = await client.request("PATCH", "/v1/query", json={"query": "x"})
    assert "/openapi.json" in str(problem_of(wrong, 405)["detail"])
    assert wrong.headers["Allow"] == "OPTIONS, POST"


@pytest.mark.attack("A9")
async def test_a_foreign_host_is_a_problem_on_every_path(gateway: Served) -> None:
    async with gateway.stranger() as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]", "10.0.0.1", ""):
            for path in ("/", "/v1/network/stats", "/openapi.json", "/nowhere"):
                response = await client.get(path, headers={"Host": host})
                assert "api.allowed_hosts" in str(problem_of(response, 421)["detail"]), host
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.8.9.10"):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_who_has_no_key_is_told_how_to_send_one(gateway: Served) -> None:
    async with gateway.stranger() as client:
        for authorization in (
            None,
            "",
            "Bearer",
            "Bearer nonsense",
            "Basic b3dtOm93bQ==",
            "Bearer owm_" + "f" * 64,
        ):
            headers = {} if authorization is None else {"Authorization": authorization}
            response = await client.post("/v1/query", json={"query": "x"}, headers=headers)
            assert "Authorization: Bearer owm_" in str(problem_of(response, 401)["detail"])
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="owm"'
    assert gateway.network.asked == []


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (BadRequest("the worker refused it: no such thing"), 400, None),
        (PromptTooLarge("the prompt has 3000 tokens; at most 2048 fit"), 413, None),
        (WorkFailed("given up after 4 attempts"), 502, None),
        (NoWorker("no worker serves this now; try again soon", retry_after=5), 503, "5"),
        (Busy("the queue is full", retry_after=1), 503, "1"),
        (TimedOut("not done within 120 s"), 504, None),
        (RuntimeError(SECRET), 500, None),
        (ExceptionGroup("group", [ValueError(SECRET)]), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("path", ["/v1/query", "/v1/query/stream"])
async def test_a_failure_before_the_first_token_has_its_status(
    gateway: Served, error: Exception, status: int, retry: str | None, path: str
) -> None:
    gateway.network.fault = raising(error)
    response = await ask(gateway, path=path)
    found = problem_of(response, status)
    assert response.headers.get("Retry-After") == retry
    if status == 500:
        assert "try again" in str(found["detail"])
    gateway.network.fault = None
    assert (await ask(gateway)).json()["answer"] == "one two three"  # and the gateway lives on


@pytest.mark.parametrize(
    "error", [WorkFailed("the worker was lost"), RuntimeError(SECRET)], ids=["foreseen", "unforeseen"]
)
async def test_a_failure_after_the_first_token_is_the_streams_last_event(gateway: Served, error: Exception) -> None:
    gateway.network.late_fault = raising(error)
    response = await ask(gateway, path="/v1/query/stream")
    assert response.status_code == 200
    events = [event for event in response.text.split("\n\n") if event]
    assert [event.partition("\n")[0] for event in events] == ["event: token", "event: token", "event: error"]
    checked(events[-1].partition("data: ")[2].encode(), 502 if isinstance(error, ApiError) else 500)


async def test_an_answer_that_takes_too_long_is_504_and_too_many_at_once_are_503(tmp_path: Path) -> None:
    network = ScriptedNetwork(pause=30.0)
    async with (
        served(tmp_path, network, query_timeout=0.3, max_concurrent=1) as gateway,
        trio.open_nursery() as nursery,
    ):
        late: list[httpx.Response] = []

        async def first() -> None:
            late.append(await ask(gateway))

        nursery.start_soon(first)
        with trio.fail_after(5):
            while not network.asked:  # noqa: ASYNC110
                await trio.sleep(0.005)
        second = await ask(gateway)
        assert "try again" in str(problem_of(second, 503)["detail"])
        assert second.headers["Retry-After"] == "2"
        with trio.fail_after(5):
            while not late:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert "0.3 s" in str(problem_of(late[0], 504)["detail"])
        problem_of(await ask(gateway, path="/v1/query/stream"), 504)


async def test_a_body_that_never_arrives_is_408(gateway: Served) -> None:
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {gateway.secret}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    answer = await raw(gateway.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"content-type: application/problem+json" in answer.lower()
    checked(answer.partition(b"\r\n\r\n")[2], 408)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),  # whole, at once
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 4_000 + b"\r\n", 431),
    ],
)
async def test_what_is_no_http_request_is_a_problem_too(gateway: Served, sent: bytes, status: int) -> None:
    answer = await raw(gateway.port, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    for line in (
        b"content-type: application/problem+json",
        b"x-owm-model-version: abababababab",  # SRS-API-01: all responses
        b"x-owm-ots-verified: false",
        b"x-content-type-options: nosniff",
    ):
        assert line in head.lower()
    checked(body, status)


async def test_a_head_of_sixteen_kibibytes_is_read(gateway: Served) -> None:
    answer = await raw(gateway.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 16_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_websocket_finds_nothing_here(gateway: Served) -> None:
    request = (
        "GET /v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = await raw(gateway.port, request.encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405")
    checked(body, 405)


async def test_header_values_of_any_bytes_make_nothing_fail(gateway: Served) -> None:
    for name in ("Authorization", "Cookie", "Origin", "Sec-Fetch-Site", "Content-Type"):
        for value in (
            b"Bearer owm_\xff\xfe",
            b"owm_session=1.\xff\xc3\x28",
            b'owm_session="',
            b"application/json; charset=\xff",
        ):
            request = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n"
            answer = await raw(gateway.port, request + name.encode() + b": " + value + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401"), (name, value, answer[:200])


async def test_an_answer_belongs_to_who_asked(gateway: Served) -> None:
    """Somebody else's answer and one that never was are refused in the same words."""
    query_id = (await ask(gateway)).json()["query_id"]
    other = gateway.keys.add("other").secret
    never = "qry_" + "0" * 26
    async with gateway.client() as mine, gateway.client(Authorization=f"Bearer {other}") as theirs:
        assert (await mine.get(f"/v1/query/{query_id}")).json()["answer"] == "one two three"
        stranger = problem_of(await theirs.get(f"/v1/query/{query_id}"), 404)
        assert stranger == problem_of(await mine.get(f"/v1/query/{never}"), 404)
        gateway.clock.advance(3601)
        problem_of(await mine.get(f"/v1/query/{query_id}"), 404)
    async with gateway.stranger() as nobody:
        problem_of(await nobody.get(f"/v1/query/{query_id}"), 401)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"messages": []}, 400, "unprocessable"),
        ({"messages": [{"role": "user", "content": "word " * 1000}]}, 400, "context_length_exceeded"),
        ({"model": "other"}, 404, "not_found"),
        ({"n": 2}, 400, "unprocessable"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "unprocessable"),
    ],
)
async def test_the_openai_dialect_refuses_in_openais_words(
    gateway: Served, change: dict[str, object], status: int, code: str
) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], **change}
    response = await ask(gateway, json.dumps(body).encode(), "/v1/chat/completions")
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert gateway.network.asked == []


async def test_a_field_that_is_skipped_may_not_be_nested_without_end(gateway: Served) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        body = (
            b'{"messages": [{"role": "user", "content": "x"}], "metadata": '
            + opening * 50_000
            + b"1"
            + closing * 50_000
            + b"}"
        )
        response = await ask(gateway, body, "/v1/chat/completions")
        assert response.status_code == 400
        assert "nested too deeply" in response.json()["error"]["message"]


@pytest.mark.parametrize("error", [NoWorker("nobody is here", retry_after=5), RuntimeError(SECRET)])
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_the_openai_dialect_tell_no_secrets(gateway: Served, error: Exception, stream: bool) -> None:
    gateway.network.fault = raising(error)
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": stream}).encode()
    response = await ask(gateway, body, "/v1/chat/completions")
    assert response.status_code == (503 if isinstance(error, NoWorker) else 500)
    assert response.json()["error"]["type"] == "server_error"
    assert SECRET not in response.text and "Traceback" not in response.text


async def test_every_status_that_can_come_is_in_the_document(gateway: Served) -> None:
    """What a client sees here it could have read in /openapi.json."""
    described = document()["paths"]["/v1/query"]["post"]["responses"]
    listed = {int(status) for status in described}
    assert {200, 400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 431, 500, 502, 503, 504} - listed == set()
    for status in listed - {200}:
        assert list(described[str(status)]["content"]) == ["application/problem+json"]
