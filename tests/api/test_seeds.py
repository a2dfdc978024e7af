"""The seed of an answer: the client's, or a fresh one for each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api._gateway import Served, World


async def said(world: World, path: str, body: dict[str, Any]) -> str:
    async with world.client() as client:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        found = response.json()
        return str(found["answer"] if "answer" in found else found["choices"][0]["message"]["content"])


async def test_the_same_question_twice_without_a_seed_gets_two_answers(world: World) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}),
        ("/v1/query", {"query": "Hello", "max_tokens": 8}),
    ):
        assert len({await said(world, path, body) for _ in range(3)}) == 3


async def test_the_same_seed_gets_the_same_answer(world: World) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    for seed in (0, 7, -1, -(2**63), 2**63 - 1):
        answers = {await said(world, "/v1/chat/completions", {**body, "seed": seed}) for _ in range(2)}
        assert len(answers) == 1


@pytest.mark.parametrize(("seed", "used"), [(5, 5), (-1, 2**32 - 1), (-7, 2**32 - 7), (2**32 + 3, 3)])
async def test_negative_and_large_seeds_count_by_their_lowest_bits(gateway: Served, seed: int, used: int) -> None:
    async with gateway.client() as client:
        body = {"messages": [{"role": "user", "content": "Hello"}], "seed": seed}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert (await client.post("/v1/chat/completions", json={**body, "seed": 2**63})).status_code == 400
    assert [request.seed for request in gateway.network.asked] == [used]
