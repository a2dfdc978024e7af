"""What a client of the gateway is told when workers refuse: our words and the right status, never a worker's."""

from __future__ import annotations

import pytest

from owm.api import ApiError, BadRequest, PromptTooLarge
from owm.config import load_constitution
from owm.errors import UsageError
from owm.model import ChatMessage, GenerateRequest
from owm.model.errors import PromptTooLong
from owm.roles.gateway import NetworkBackend
from tests.tasks.world import world

HOSTILE = "<script>the token of your context</script>"


@pytest.mark.parametrize(
    ("error", "expected"), [(PromptTooLong(HOSTILE), PromptTooLarge), (UsageError(HOSTILE), BadRequest)]
)
async def test_a_workers_own_words_never_reach_a_client(
    autojump_clock: object, error: UsageError, expected: type[ApiError]
) -> None:
    async with world(workers=2) as made:
        for peer in made.workers:
            peer.engine.error = error
        backend = NetworkBackend(made.requester, made.directory, made.network, load_constitution("devnet"), made.clock)
        request = GenerateRequest(messages=(ChatMessage("user", "how far?"),), max_tokens=4)
        with pytest.raises(expected) as caught:
            async with backend.answer(request, timeout=10) as events:
                async for _ in events:
                    pass
        assert "script" not in str(caught.value)
