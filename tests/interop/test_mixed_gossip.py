"""Our peers, go-libp2p's, js-libp2p's and py-libp2p's on one strictly signed topic: every node hears everybody."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import pytest
import trio

from owm.identity import PeerId
from tests.foreign import GoPeer, JsPeer, foreign_missing
from tests.interop._mixed import Mixed, Ours, mixed_net

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing()),
]

TOPIC = "mixed news"
JS_DIALS = 1.2  # seconds between two dials: js takes five connections a second from one address


class PyPeer:
    """py-libp2p's host with its own transport and GossipSub, in this process."""

    def __init__(self, host: Any, pubsub: Any) -> None:
        self.host = host
        self.pubsub = pubsub
        self.peer_id = PeerId(host.get_id().to_bytes())

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        from libp2p import new_host
        from libp2p.pubsub.gossipsub import GossipSub
        from libp2p.pubsub.pubsub import Pubsub
        from libp2p.tools.anyio_service import background_trio_service
        from multiaddr import Multiaddr

        host = new_host()
        gossip = GossipSub(
            protocols=["/meshsub/1.1.0"],  # type: ignore[list-item]
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
        )
        pubsub = Pubsub(host, gossip, strict_signing=True)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            await stack.enter_async_context(background_trio_service(pubsub))
            await stack.enter_async_context(background_trio_service(gossip))
            await pubsub.wait_until_ready()
            yield cls(host, pubsub)

    async def connect(self, other: Ours | GoPeer | JsPeer) -> None:
        from libp2p.peer.id import ID
        from libp2p.peer.peerinfo import PeerInfo
        from multiaddr import Multiaddr

        await self.host.connect(PeerInfo(ID(bytes(other.peer_id)), [Multiaddr(other.address)]))


Anyone = Ours | GoPeer | JsPeer | PyPeer


class Ears:
    """Who heard what, and how often."""

    def __init__(self) -> None:
        self.heard: Counter[tuple[PeerId, bytes]] = Counter()
        self.authors: dict[bytes, set[PeerId]] = {}

    def hear(self, reader: Anyone, data: bytes, author: bytes) -> None:
        self.heard[reader.peer_id, data] += 1
        self.authors.setdefault(data, set()).add(PeerId(author))

    async def read(self, reader: Anyone) -> None:
        if isinstance(reader, Ours):
            async for message in reader.pubsub.subscribe(TOPIC):
                self.hear(reader, message.data, message.author)
        elif isinstance(reader, GoPeer):
            async with reader.subscribe(TOPIC) as messages:
                async for found in messages:
                    self.hear(reader, found.data, getattr(found, "from"))
        elif isinstance(reader, JsPeer):
            await reader.do("subscribe", topic=TOPIC)
            async for told in reader.messages:
                self.hear(reader, base64.b64decode(told["data"]), PeerId.parse(told["from"]))
        else:
            subscription = await reader.pubsub.subscribe(TOPIC)
            while True:
                got = await subscription.get()
                self.hear(reader, got.data, got.from_id)


async def say(author: Anyone, data: bytes) -> None:
    if isinstance(author, Ours):
        await author.pubsub.publish(TOPIC, data)
    elif isinstance(author, GoPeer):
        await author.publish(TOPIC, data)
    elif isinstance(author, JsPeer):
        await author.do("publish", topic=TOPIC, data=data)
    else:
        await author.pubsub.publish(TOPIC, data)


async def join(net: Mixed, peers: list[PyPeer]) -> None:
    """Each py-libp2p peer dials some of ours, one of go's and one of js's."""
    for number, peer in enumerate(peers):
        for ours in (net.ours[number], net.ours[number + 7], net.ours[number + 13]):
            await peer.connect(ours)
        await peer.connect(net.go[number % len(net.go)])
        await peer.connect(net.js[number % len(net.js)])
        await trio.sleep(JS_DIALS)


async def test_everybody_hears_everybody_and_nobody_is_blamed() -> None:
    ears, said, kinds = Ears(), dict[bytes, PeerId](), dict[PeerId, str]()
    wanted: list[tuple[PeerId, bytes]] = []
    async with mixed_net(20, 5, 5) as net, AsyncExitStack() as stack:
        library = [await stack.enter_async_context(PyPeer.running()) for _ in range(4)]
        await join(net, library)
        everybody: list[Anyone] = [*net.everybody, *library]
        kinds.update((peer.peer_id, type(peer).__name__) for peer in everybody)
        async with trio.open_nursery() as nursery:
            for peer in everybody:
                nursery.start_soon(ears.read, peer)
            await trio.sleep(6)  # heartbeats of four implementations: their meshes form in real time
            for number, author in enumerate([*net.ours[:5], *net.go, *net.js, *library]):
                data = hashlib.sha256(b"%d" % number).digest() * 8
                said[data] = author.peer_id
                await say(author, data)
                await trio.sleep(0.1)
            wanted += [(peer.peer_id, data) for data, who in said.items() for peer in everybody if peer.peer_id != who]
            with trio.move_on_after(30):
                while any(not ears.heard[pair] for pair in wanted):  # noqa: ASYNC110 - many readers
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        cores = [ours.pubsub.core for ours in net.ours]
        low = {(kinds[peer], score) for core in cores for peer in core.peers() if (score := core.score(peer)) < 0}
        rejected = sum(core.counters.rejected for core in cores)
        blamed = Counter(reason for ours in net.ours for reason in ours.network.statistics().penalties)
    missed = Counter((kinds[said[data]], kinds[who]) for who, data in wanted if not ears.heard[who, data])
    assert missed == {}, "(author's kind, reader's kind) of what was not heard"
    again = Counter(kinds[who] for who, data in wanted if ears.heard[who, data] > 1)
    assert again == {}, "heard more than once"
    assert ears.authors == {data: {who} for data, who in said.items()}
    assert (blamed, low, rejected) == ({}, set(), 0)
