"""Who may ask: keys in requests, the landing page's sessions, limits and the headers that tell of them, origins."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from owm.api import _access
from owm.api._access import Caller
from owm.api._usage import Usage
from owm.api.errors import RateLimited
from tests.api._gateway import Served, served

QUERY = {"query": "Hello"}


async def test_a_revoked_key_is_refused_within_a_second(gateway: Served) -> None:
    made = gateway.keys.add("other", 5)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200
        gateway.keys.revoke(made.key.id)
        gateway.clock.advance(1.0)
        refused = await client.post("/v1/query", json=QUERY)
        assert refused.status_code == 401
        gateway.clock.advance(3600)
        assert (await client.post("/v1/query", json=QUERY)).status_code == 401
    assert len(gateway.network.asked) == 1


async def test_a_key_made_while_the_gateway_runs_works_at_once(gateway: Served) -> None:
    made = gateway.keys.add("new")
    async with gateway.client(Authorization=f"bearer  {made.secret}") as client:
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200


async def test_a_guess_that_becomes_a_key_is_believed_within_a_second(gateway: Served) -> None:
    """That a secret was unknown is remembered no longer than that it was known."""
    made = gateway.keys.add("mine")
    gateway.keys._execute("UPDATE api_keys SET revoked = 1 WHERE id = ?", (made.key.id,))
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        assert (await client.post("/v1/query", json=QUERY)).status_code == 401
        gateway.keys._execute("UPDATE api_keys SET revoked = NULL WHERE id = ?", (made.key.id,))
        gateway.clock.advance(1.0)
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200


async def test_the_day_of_a_key_ends_in_429_and_begins_again(gateway: Served) -> None:
    """SRS-API-02; the headers say what is left."""
    made = gateway.keys.add("small", 3)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        for left in (2, 1, 0):
            response = await client.post("/v1/query", json=QUERY)
            assert response.status_code == 200
            assert response.headers["X-RateLimit-Limit"] == "3"
            assert response.headers["X-RateLimit-Remaining"] == str(left)
            gateway.clock.advance(100)
        for path in ("/v1/query", "/v1/query/stream"):
            refused = await client.post(path, json=QUERY)
            assert refused.status_code == 429
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert refused.headers["Retry-After"] == str(86_400 - 300)
            assert refused.headers["X-RateLimit-Remaining"] == "0"
        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        openai = await client.post("/v1/chat/completions", json=chat)
        assert (openai.status_code, openai.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert len(gateway.network.asked) == 3
        fetched = await client.get("/v1/query/qry_none")
        assert fetched.status_code == 404  # fetching again costs nothing, and is not refused either
        gateway.clock.advance(86_400 - 300)
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200
        assert (await client.post("/v1/query", json=QUERY)).status_code == 429


async def test_a_refused_body_is_not_counted(gateway: Served) -> None:
    made = gateway.keys.add("small", 1)
    async with gateway.client(Authorization=f"Bearer {made.secret}") as client:
        assert (await client.post("/v1/query", json={"query": ""})).status_code == 422
        assert (await client.post("/v1/query", json={"query": "word " * 1000})).status_code == 413
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200


async def test_a_key_without_limit_is_told_of_none(gateway: Served) -> None:
    async with gateway.client() as client:
        response = await client.post("/v1/query", json=QUERY)
    assert "X-RateLimit-Limit" not in response.headers


async def test_every_response_tells_the_model_s_version_and_whether_its_timestamp_was_verified(gateway: Served) -> None:
    """SRS-API-01."""
    async with gateway.client() as client:
        responses = [
            await client.post("/v1/query", json=QUERY),
            await client.post("/v1/query/stream", json=QUERY),
            await client.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
            ),
            *[
                await client.get(path)
                for path in ("/", "/healthz", "/v1/models", "/v1/network/nodes", "/openapi.json", "/x")
            ],
        ]
        gateway.network.served = ()
        without = await client.get("/healthz")
    for response in responses:
        assert response.headers["X-OWM-Model-Version"] == "abababababab"
        assert response.headers["X-OWM-OTS-Verified"] == "false"
    assert without.headers["X-OWM-Model-Version"] == "none"


async def session(client: httpx.AsyncClient) -> str:
    """The cookie that the landing page gives."""
    page = await client.get("/")
    assert page.status_code == 200
    cookie = page.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Max-Age=86400" in cookie
    found = re.match(r"owm_session=([^;]+)", cookie)
    assert found is not None
    return found[1]


async def test_the_page_s_visitor_may_ask_without_a_key_a_few_times_a_day(tmp_path: Path) -> None:
    async with served(tmp_path, page_requests_per_day=2) as gateway:
        async with gateway.stranger() as client:
            assert (await client.post("/v1/query", json=QUERY)).status_code == 401
            await session(client)  # kept in the client's jar
            assert [(await client.post("/v1/query", json=QUERY)).status_code for _ in range(3)] == [200, 200, 429]
        async with gateway.stranger() as again:  # a new session, but the same address
            await session(again)
            assert (await again.post("/v1/query", json=QUERY)).status_code == 429
        async with gateway.stranger("127.0.0.2") as neighbour:
            await session(neighbour)
            response = await neighbour.post("/v1/query", json=QUERY)
            assert response.status_code == 200
            assert (response.headers["X-RateLimit-Limit"], response.headers["X-RateLimit-Remaining"]) == ("2", "1")


async def test_a_session_is_good_from_its_own_address_for_a_day(gateway: Served) -> None:
    async with gateway.stranger() as client:
        stolen = await session(client)
        gateway.clock.advance(86_399)
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200
        gateway.clock.advance(1)
        cookie = {"Cookie": f"owm_session={stolen}"}
        assert (await client.post("/v1/query", json=QUERY, headers=cookie)).status_code == 401
        fresh = await session(client)
    async with gateway.stranger("127.0.0.2") as thief:
        thief.headers["Cookie"] = f"owm_session={fresh}"
        assert (await thief.post("/v1/query", json=QUERY)).status_code == 401


async def test_a_session_cannot_be_forged(gateway: Served) -> None:
    async with gateway.stranger() as client:
        expires, _, signature = (await session(client)).partition(".")
        client.cookies.clear()
        later = str(int(expires) + 1)
        flipped = ("1" if signature[0] == "0" else "0") + signature[1:]
        for forged in (
            "",
            ".",
            expires,
            f"{later}.{signature}",
            f"{expires}.{flipped}",
            f"{expires}.",
            f".{signature}",
            "9" * 5000 + ".x",
        ):
            response = await client.post("/v1/query", json=QUERY, headers={"Cookie": f"owm_session={forged}"})
            assert response.status_code == 401, forged
    assert gateway.network.asked == []


async def test_signatures_are_compared_in_constant_time(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's function for it, whole signature against whole signature."""
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    async with gateway.stranger() as client:
        value = await session(client)
        watched = SimpleNamespace(compare_digest=compare, digest=hmac.digest)
        monkeypatch.setattr(_access, "hmac", watched)
        assert (await client.post("/v1/query", json=QUERY)).status_code == 200
        right = value.partition(".")[2].encode()
        assert compared == [(right, right)]


@pytest.mark.attack("A9")
async def test_a_foreign_page_cannot_ride_on_the_session(gateway: Served) -> None:
    async with gateway.stranger() as client:
        await session(client)
        for site in ("cross-site", "same-site", "nonsense"):
            refused = await client.post("/v1/query", json=QUERY, headers={"Sec-Fetch-Site": site})
            assert refused.status_code == 403
        for site in ("same-origin", "none"):
            assert (await client.post("/v1/query", json=QUERY, headers={"Sec-Fetch-Site": site})).status_code == 200
    assert len(gateway.network.asked) == 2


async def test_only_named_origins_are_told_that_they_may_read(tmp_path: Path) -> None:
    async with served(tmp_path, cors_origins=("https://app.example",)) as gateway, gateway.client() as client:
        friend = await client.options("/v1/query", headers={"Origin": "https://app.example"})
        assert friend.status_code == 204
        assert friend.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "Authorization" in friend.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in friend.headers
        answer = await client.post("/v1/query", json=QUERY, headers={"Origin": "https://app.example"})
        assert "X-RateLimit-Remaining" in answer.headers["Access-Control-Expose-Headers"]
        for origin in ("https://evil.example", "null", "https://app.example.evil.example", "http://app.example"):
            foe = await client.post("/v1/query", json=QUERY, headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in foe.headers


async def test_allowed_hosts_are_those_of_the_settings(tmp_path: Path) -> None:
    async with served(tmp_path, allowed_hosts=("gateway.example",)) as gateway, gateway.stranger() as client:
        for host, status in (("gateway.example", 200), ("Gateway.Example.:443", 200), ("x.gateway.example", 421)):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == status


async def test_a_locked_key_file_is_a_passing_problem(gateway: Served) -> None:
    gateway.keys.close()
    async with gateway.client() as client:
        response = await client.post("/v1/query", json=QUERY)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "sqlite" not in response.text.lower() and "database" not in response.text


async def test_a_crowd_of_addresses_makes_nobody_forget_what_a_key_has_used(gateway: Served) -> None:
    usage = Usage(gateway.keys.path, gateway.clock)
    usage._windows[True]._max_callers = 100
    key = Caller("key_1", 1)
    usage.charge(key)
    for number in range(1000):
        usage.charge(Caller(f"page:2001:db8:0:{number:x}::/64", 1, anonymous=True))
    with pytest.raises(RateLimited):
        usage.charge(key)
