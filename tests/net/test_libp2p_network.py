"""The network over TCP keeps the contract, and what only sockets can show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from owm.net import Network, NetworkLimits
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import LIMITS, NetworkConformance, identity


class TestLibp2pNetwork(NetworkConformance):
    _numbers = 0

    @asynccontextmanager
    async def networks(self, count: int = 2, limits: NetworkLimits = LIMITS) -> AsyncIterator[list[Network]]:
        async with AsyncExitStack() as stack:
            first, self._numbers = self._numbers + 1, self._numbers + count
            yield [
                await stack.enter_async_context(Libp2pNetwork(identity(number), limits=limits).running())
                for number in range(first, first + count)
            ]
