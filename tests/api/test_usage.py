"""What a caller has used of its day: kept over restarts, and given back when the failure was ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from owm.api import ApiError, BadRequest, NoWorker, TimedOut, WorkFailed
from owm.api._access import Caller
from owm.api._bodies import QueryResponse
from owm.api._results import Results
from owm.api._usage import Usage
from owm.api.errors import NotFound, RateLimited
from owm.clock import ManualClock
from tests.api._gateway import Served, served

DAY = 86_400.0
QUERY = {"query": "Hello"}
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
KEY = Caller("key_1", 3)


def rows(path: Path) -> list[tuple[str, float]]:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT caller, at FROM api_requests ORDER BY at").fetchall()


async def test_a_restart_forgets_nothing_and_the_day_goes_on(tmp_path: Path) -> None:
    """The clock of a new process starts anew; what counts is the wall's."""
    path = tmp_path / "keys.sqlite"
    clock = ManualClock(start=1_800_000_000.0)
    async with Usage(path, clock).running() as usage:
        usage.charge(KEY)
        clock.advance(1000)
        usage.charge(KEY)
    later = ManualClock(start=1_800_002_000.0)
    async with Usage(path, later).running() as usage:
        assert usage.remaining(KEY) == 1
        usage.charge(KEY)
        with pytest.raises(RateLimited) as refused:
            usage.charge(KEY)
        assert refused.value.retry_after == DAY - 2000
        later.advance(DAY - 2000)
        assert usage.remaining(KEY) == 1


async def test_a_key_s_day_survives_a_restart_of_the_gateway(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        made = gateway.keys.add("small", 2)
        async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
            assert (await client.post("/v1/query", json=QUERY)).headers["X-RateLimit-Remaining"] == "1"
    async with (
        served(tmp_path) as gateway,
        gateway.client(Authorization=f"Bearer {made.secret}") as client,
    ):
        assert (await client.post("/v1/query", json=QUERY)).headers["X-RateLimit-Remaining"] == "0"
        assert (await client.post("/v1/query", json=QUERY)).status_code == 429


async def test_the_page_s_visitors_are_remembered_too(tmp_path: Path) -> None:
    for status in (200, 429):
        async with served(tmp_path, page_requests_per_day=1) as gateway, gateway.stranger() as client:
            await client.get("/")
            assert (await client.post("/v1/query", json=QUERY)).status_code == status


async def test_rows_are_dropped_when_their_day_is_over(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    clock = ManualClock()
    async with Usage(path, clock).running() as usage:
        for _ in range(3):
            usage.charge(KEY)
    clock.advance(DAY)
    async with Usage(path, clock).running() as usage:
        usage.charge(KEY)
    assert rows(path) == [(KEY.id, clock.time())]


async def test_a_clock_that_was_set_back_locks_nobody_out_for_longer_than_a_day(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    async with Usage(path, ManualClock(start=2_000_000_000.0)).running() as usage:
        for _ in range(3):
            usage.charge(KEY)
    clock = ManualClock(start=1_800_000_000.0)
    async with Usage(path, clock).running() as usage:
        assert usage.remaining(KEY) == 0
        clock.advance(DAY)
        assert usage.remaining(KEY) == 3


def raising(error: Exception) -> Callable[[], object]:
    def fault() -> object:
        raise error

    return fault


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (WorkFailed("lost"), "1"),
        (NoWorker("nobody", retry_after=5), "1"),
        (TimedOut("late"), "1"),
        (BadRequest("the worker refused it"), "0"),
        (RuntimeError("a bug"), "0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/query", QUERY), ("/v1/query/stream", QUERY), ("/v1/chat/completions", {**CHAT, "stream": True})],
)
async def test_what_failed_before_its_first_byte_costs_nothing(
    gateway: Served, error: Exception, left: str, path: str, body: dict[str, object]
) -> None:
    gateway.network.fault = raising(error)
    made = gateway.keys.add("small", 1)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        failed = await client.post(path, json=body)
        assert failed.status_code == (error.status if isinstance(error, ApiError) else 500)
        assert failed.headers["X-RateLimit-Remaining"] == left
        gateway.network.fault = None
        assert (await client.post(path, json=body)).status_code == (200 if left == "1" else 429)


async def test_embeddings_that_nobody_made_cost_nothing(gateway: Served) -> None:
    made = gateway.keys.add("small", 1)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        for _ in range(2):
            assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 503


async def test_a_stream_that_began_is_paid_for_though_it_failed(gateway: Served) -> None:
    gateway.network.late_fault = raising(WorkFailed("lost"))
    made = gateway.keys.add("small", 1)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        assert "event: error" in (await client.post("/v1/query/stream", json=QUERY)).text
        assert (await client.post("/v1/query/stream", json=QUERY)).status_code == 429


async def test_what_was_given_back_stays_so_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    clock = ManualClock()
    async with Usage(path, clock).running() as usage:
        usage.charge(KEY)
        usage.give_back(usage.charge(KEY))
    assert len(rows(path)) == 1


def answer(number: int, text: str = "x") -> QueryResponse:
    return QueryResponse(
        query_id=f"qry_{number}",
        answer=text,
        sub_models_used=(),
        data_sources=(),
        confidence=None,
        model_version="",
        ots_verified=False,
        latency_ms=0,
        cost_sats=0,
        worker="",
        receipt_id="",
        attempts=1,
        time_to_first_token_ms=None,
    )


def test_a_busy_owner_evicts_only_its_own_answers() -> None:
    results = Results(per_owner=10)
    results.put("quiet", answer(0), 0.0)
    for number in range(1, 5001):
        results.put("busy", answer(number), 1.0)
    assert results.get("quiet", "qry_0", 2.0) == answer(0)
    assert [results.get("busy", f"qry_{number}", 2.0).query_id for number in range(4991, 5001)]
    with pytest.raises(NotFound):
        results.get("busy", "qry_4990", 2.0)
    assert len(results) == 11


def test_answers_are_bounded_in_bytes_for_one_and_for_all() -> None:
    results = Results(per_owner=100, bytes_per_owner=10_000, max_bytes=50_000)
    for number in range(100):
        results.put(f"owner {number // 20}", answer(number, "y" * 3000), float(number))
        assert results.size <= 50_000
    with pytest.raises(NotFound):
        results.get("owner 4", "qry_97", 100.0)
    assert results.get("owner 4", "qry_99", 100.0)
    results.put("large", answer(1000, "z" * 20_000), 100.0)
    with pytest.raises(NotFound):
        results.get("large", "qry_1000", 100.0)
    results.put("late", answer(1001), 100.0 + 3601)
    assert (len(results), len(results._owners)) == (1, 1)
