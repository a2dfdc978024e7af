"""Peers that run py-libp2p as it comes, with its own Noise and Yamux, dial us and are dialled."""

from __future__ import annotations

from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_static_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from owm.identity import PeerId
from owm.net.libp2p import Libp2pNetwork
from tests.net.conformance import ECHO, LIMITS, PATIENCE, echo, eventually, identity

ANYWHERE = multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")


async def library_echo(stream: Any) -> None:
    try:
        while True:
            await stream.write(await stream.read(65536))
    except (StreamEOF, StreamError):
        await stream.close()


def library_host() -> Any:
    keys = create_new_key_pair(bytes([77]) * 32)
    host = new_host(
        key_pair=keys, sec_opt={NOISE: NoiseTransport(keys, noise_privkey=create_static_key_pair().private_key)}
    )
    host.set_stream_handler(TProtocol(ECHO), library_echo)
    return host


async def test_a_plain_py_libp2p_peer_and_ours_talk_both_ways() -> None:
    host, ours = library_host(), Libp2pNetwork(identity(1), limits=LIMITS)
    ours.handle(ECHO, echo)
    theirs, us = PeerId(host.get_id().to_bytes()), ID(bytes(ours.peer_id))
    with trio.fail_after(3 * PATIENCE):  # the library takes seconds to start, and longer on a busy machine
        async with ours.running(), host.run([ANYWHERE]):
            await host.get_network().dial_addr(multiaddr.Multiaddr(ours.addresses[0]), us)
            stream = await host.new_stream(us, [TProtocol(ECHO)])
            await stream.write(bytes(5000))
            received = 0
            while received < 5000:
                received += len(await stream.read(65536))
            await ours.disconnect(theirs)
            (listener,) = host.get_network().listeners.values()
            assert await ours.connect(theirs, [str(listener.get_addrs()[0]).partition("/p2p/")[0]]) == theirs
            await eventually(lambda: ECHO in ours.connections()[0].protocols)
            async with await ours.open_stream(theirs, ECHO) as own:
                await own.send(bytes(300_000))  # more than a window
                received = 0
                while received < 300_000:
                    received += len(await own.receive())
