"""Twenty of our peers, five go-libp2p's and five js-libp2p's in one net: everybody finds everybody."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import pytest
import trio

from owm.dht import provider_key
from owm.identity import PeerId
from tests.foreign import GoPeer, JsPeer, foreign_missing
from tests.interop._mixed import Mixed, Ours, mixed_net

_Sought = TypeVar("_Sought")
AnyPeer = Ours | GoPeer | JsPeer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing()),
]


async def find_peer(peer: AnyPeer, wanted: PeerId) -> bool:
    """Whether ``peer`` learns where ``wanted`` listens."""
    if isinstance(peer, Ours):
        found = await peer.dht.find_peer(wanted)
        return found is not None and bool(found.addresses)
    if isinstance(peer, GoPeer):
        return any(part.peer.id == bytes(wanted) for part in await peer.dht("FIND_PEER", peer=bytes(wanted)))
    return bool(await peer.do("find_peer", peer=str(wanted)))


async def provide(peer: AnyPeer, key: bytes) -> None:
    multihash = provider_key(key)
    if isinstance(peer, Ours):
        assert await peer.dht.provide(key) > 0
    elif isinstance(peer, GoPeer):
        await peer.dht("PROVIDE", cid=b"\x01\x55" + multihash)
    else:
        await peer.do("provide", multihash=multihash)


async def find_providers(peer: AnyPeer, key: bytes) -> set[PeerId]:
    multihash = provider_key(key)
    if isinstance(peer, Ours):
        return {provider.peer for provider in await peer.dht.find_providers(key)}
    if isinstance(peer, GoPeer):
        return {PeerId(p.peer.id) for p in await peer.dht("FIND_PROVIDERS", cid=b"\x01\x55" + multihash, count=5)}
    return {PeerId.parse(text) for text in await peer.do("find_providers", multihash=multihash)}


async def settled(net: Mixed) -> None:
    """Every routing table has filled: our peers look themselves up, the others' tables follow their connections."""
    async with trio.open_nursery() as nursery:
        for peer in net.ours:
            nursery.start_soon(peer.dht.bootstrap)
    with trio.fail_after(60):
        for js in net.js:
            while await js.do("table") < 4:  # noqa: ASYNC110 - it is in another process
                await trio.sleep(0.2)


async def everybody_finds(
    net: Mixed, sought: list[_Sought], find: Callable[[AnyPeer, _Sought], Awaitable[bool]], within: float
) -> list[str]:
    """Each peer looks for everything, again and again for what it missed; returns what was missed after all."""
    missing = {number: list(sought) for number in range(len(net.everybody))}

    async def look(number: int, peer: AnyPeer) -> None:
        while missing[number]:
            for one in list(missing[number]):
                with suppress(RuntimeError):  # how the foreign ones say that they have not found it
                    if await find(peer, one):
                        missing[number].remove(one)
            if missing[number]:
                await trio.sleep(1)  # tables fill in real time: identify has to run on every connection

    with trio.move_on_after(within):
        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(net.everybody):
                nursery.start_soon(look, number, peer)
    return [
        f"{type(net.everybody[n]).__name__} {n} does not find {one!r}" for n, left in missing.items() for one in left
    ]


def assert_nobody_was_blamed(net: Mixed) -> None:
    """All of them are honest, the foreign ones too."""
    assert Counter(reason for ours in net.ours for reason in ours.network.statistics().penalties) == {}


@pytest.mark.timeout(420)  # 900 searches for peers and 900 for providers, in eleven processes
async def test_everybody_finds_everybody_and_whom_they_provide_for() -> None:
    async with mixed_net(20, 5, 5) as net:
        await settled(net)

        async def finds_peer(peer: AnyPeer, wanted: PeerId) -> bool:
            return peer.peer_id == wanted or await find_peer(peer, wanted)

        everybody = [peer.peer_id for peer in net.everybody]
        assert await everybody_finds(net, everybody, finds_peer, within=90) == []

        keepers = [(b"kept by %d" % number, peer) for number, peer in enumerate(net.everybody)]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for key, keeper in keepers:
                    nursery.start_soon(provide, keeper, key)

        async def finds_keeper(peer: AnyPeer, wanted: tuple[bytes, PeerId]) -> bool:
            return wanted[1] in await find_providers(peer, wanted[0])

        kept = [(key, keeper.peer_id) for key, keeper in keepers]
        assert await everybody_finds(net, kept, finds_keeper, within=180) == []
        assert_nobody_was_blamed(net)


async def test_values_are_put_and_got_between_ours_and_js() -> None:
    async with mixed_net(12, 2, 4) as net:
        await settled(net)
        with trio.fail_after(60):
            assert await net.ours[2].dht.put_value(b"/owm/from-ours", b"said by ours") > 0
            assert await net.js[1].do("put", key=b"/owm/from-js", value=b"said by js") > 0
        for js in net.js:
            with trio.fail_after(30):
                assert base64.b64decode(await js.do("get", key=b"/owm/from-ours")) == b"said by ours"
        for ours in net.ours[5:9]:
            with trio.fail_after(30):
                assert await ours.dht.get_value(b"/owm/from-js") == b"said by js"
        assert_nobody_was_blamed(net)


async def test_values_are_put_and_got_between_ours_and_py_libp2p() -> None:
    from contextlib import AsyncExitStack

    from libp2p import new_host
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import PeerInfo
    from libp2p.records.validator import NamespacedValidator, Validator
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    class Anything(Validator):
        def validate(self, key: str, value: bytes) -> None:
            return None

        def select(self, key: str, values: list[bytes]) -> int:
            return 0

    async with AsyncExitStack() as stack:
        net = await stack.enter_async_context(mixed_net(6, 0, 0))
        host = new_host()
        await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
        kad = KadDHT(host, DHTMode.SERVER, validator=NamespacedValidator({"owm": Anything()}))
        for peer in net.ours:
            info = PeerInfo(ID(bytes(peer.peer_id)), [Multiaddr(peer.address)])
            await host.connect(info)
            await kad.routing_table.add_peer(info)
        await stack.enter_async_context(background_trio_service(kad))
        await settled(net)
        with trio.fail_after(60):
            assert await net.ours[0].dht.put_value(b"/owm/from-ours", b"said by ours") > 0
            kad.value_store.remove(b"/owm/from-ours")  # or it answers from its own store
            assert await kad.get_value("/owm/from-ours") == b"said by ours"
            await kad.put_value("/owm/from-library", b"said by the library")
            assert await net.ours[4].dht.get_value(b"/owm/from-library") == b"said by the library"
        assert_nobody_was_blamed(net)
