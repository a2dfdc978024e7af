"""Twenty of our peers, five go-libp2p's and five js-libp2p's in one net: everybody finds everybody."""

from __future__ import annotations

import base64
import os

import pytest
import trio

from owm.dht import provider_key
from owm.identity import PeerId
from tests.foreign import GoPeer, JsPeer, foreign_missing
from tests.interop._mixed import Mixed, Ours, mixed_net

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(foreign_missing()) and not os.environ.get("CI"), reason=foreign_missing()),
]


async def find_peer(peer: Ours | GoPeer | JsPeer, wanted: PeerId) -> bool:
    """Whether ``peer`` learns where ``wanted`` listens."""
    if isinstance(peer, Ours):
        found = await peer.dht.find_peer(wanted)
        return found is not None and bool(found.addresses)
    if isinstance(peer, GoPeer):
        return any(part.peer.id == bytes(wanted) for part in await peer.dht("FIND_PEER", peer=bytes(wanted)))
    return bool(await peer.do("find_peer", peer=str(wanted)))


async def provide(peer: Ours | GoPeer | JsPeer, key: bytes) -> None:
    multihash = provider_key(key)
    if isinstance(peer, Ours):
        assert await peer.dht.provide(key) > 0
    elif isinstance(peer, GoPeer):
        await peer.dht("PROVIDE", cid=b"\x01\x55" + multihash)
    else:
        await peer.do("provide", multihash=multihash)


async def find_providers(peer: Ours | GoPeer | JsPeer, key: bytes) -> set[PeerId]:
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


async def test_everybody_finds_everybody_and_whom_they_provide_for() -> None:
    async with mixed_net(20, 5, 5) as net:
        await settled(net)
        everybody = net.everybody
        missed: list[str] = []

        async def look(peer: Ours | GoPeer | JsPeer, wanted: PeerId) -> None:
            with trio.move_on_after(60):
                while True:
                    if await find_peer(peer, wanted):
                        return
                    await trio.sleep(1)  # tables fill in real time: identify has to run on every connection
            missed.append(f"{type(peer).__name__} {peer.peer_id.short} does not find {wanted.short}")

        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(everybody):
                for step in (7, 13, 21, 26):  # ours, go's and js's look for all three kinds
                    nursery.start_soon(look, peer, everybody[(number + step) % len(everybody)].peer_id)
        assert missed == []

        keys = {b"kept by ours": net.ours[3], b"kept by go": net.go[1], b"kept by js": net.js[2]}
        for key, keeper in keys.items():
            with trio.fail_after(60):
                await provide(keeper, key)
        for key, keeper in keys.items():
            for peer in (net.ours[11], net.ours[17], net.go[3], net.go[0], net.js[4], net.js[0]):
                with trio.fail_after(30):
                    assert keeper.peer_id in await find_providers(peer, key), (key, type(peer).__name__)


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
