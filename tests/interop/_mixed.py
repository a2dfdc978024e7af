"""A net of our peers, go-libp2p's and js-libp2p's on the loopback, all with libp2p's own protocol ids and defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import trio

from owm.clock import SystemClock
from owm.dht import DhtParams, KademliaDht
from owm.dht._core_types import Validity
from owm.gossip import GossipParams, PubSub, ScoreParams
from owm.identity import Identity, PeerId
from owm.net import NetworkLimits
from owm.net.errors import NetworkError
from owm.net.libp2p import Libp2pNetwork
from tests.foreign import GoPeer, JsPeer

KAD = "/ipfs/kad/1.0.0"


def anything(_key: bytes, _value: bytes) -> Validity:
    return Validity(0)


class Ours:
    """One of our peers under libp2p's protocol ids."""

    def __init__(self, number: int) -> None:
        self.identity = Identity(Random(number).randbytes(32))
        self.network = Libp2pNetwork(
            self.identity, listen=["/ip4/127.0.0.1/tcp/0"], limits=NetworkLimits(exempt_local=True)
        )
        clock = SystemClock()
        self.dht = KademliaDht(
            self.network,
            network_id="interop",
            clock=clock,
            random=Random(number),
            params=DhtParams(dial_back_groups=0),
            protocol=KAD,
            validators={"owm": anything},
            devnet=True,
        )
        self.pubsub = PubSub(
            self.network,
            identity=self.identity,
            clock=clock,
            random=Random(number),
            params=GossipParams(score=ScoreParams(colocation_weight=0.0)),
        )

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    @property
    def address(self) -> str:
        return self.network.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.rsplit("/", 1)[1])


@dataclass
class Mixed:
    ours: list[Ours] = field(default_factory=list)
    go: list[GoPeer] = field(default_factory=list)
    js: list[JsPeer] = field(default_factory=list)

    @property
    def everybody(self) -> list[Ours | GoPeer | JsPeer]:
        return [*self.ours, *self.go, *self.js]

    @property
    def ids(self) -> set[PeerId]:
        return {peer.peer_id for peer in self.everybody}


@asynccontextmanager
async def mixed_net(ours: int, go: int, js: int, *, links: int = 4) -> AsyncIterator[Mixed]:
    """Everybody knows a few others, of all kinds; each kind dials and is dialled."""
    net = Mixed()
    random = Random(5)
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        try:
            for number in range(ours):
                peer = Ours(number)
                await stack.enter_async_context(peer.network.running())
                await stack.enter_async_context(peer.dht.running())
                await stack.enter_async_context(peer.pubsub.running())
                net.ours.append(peer)
            for _ in range(go):
                net.go.append(await stack.enter_async_context(GoPeer.running()))
            for _ in range(js):
                net.js.append(await stack.enter_async_context(JsPeer.running()))
            everybody = net.everybody
            for number, peer in enumerate(everybody):
                others = [everybody[number - 1], *random.sample(everybody, links)]
                for other in others:
                    if other is not peer:
                        await _link(peer, other)
            yield net
        except Exception as error:  # noqa: BLE001 - raised below, not within sixty nested groups
            failure = error
    if failure is not None:
        raise failure


async def _link(peer: Ours | GoPeer | JsPeer, other: Ours | GoPeer | JsPeer) -> None:
    """Connect; the others turn away whom they think too eager (js: five connections a second from one address)."""
    for _ in range(5):
        try:
            with trio.fail_after(20):
                return await _dial(peer, other)
        except (RuntimeError, NetworkError) as error:
            failure = error
            if isinstance(other, Ours):
                break
            await trio.sleep(1.2)
    # go's resource manager takes eight connections from one address at all, and everybody here has the same.
    if not isinstance(other, GoPeer):
        raise AssertionError(f"{type(peer).__name__} cannot dial {type(other).__name__}: {failure}") from failure


async def _dial(peer: Ours | GoPeer | JsPeer, other: Ours | GoPeer | JsPeer) -> None:
    if isinstance(peer, Ours):
        await peer.network.connect(other.peer_id, [other.address])
    elif isinstance(peer, GoPeer):
        await peer.connect(other.peer_id, int(other.address.rsplit("/", 1)[1]))
    else:
        await peer.do("connect", address=f"{other.address}/p2p/{other.peer_id}")
