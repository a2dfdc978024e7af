"""Peers that do just what every peer does on a visit, and cost next to nothing: thousands of them fit into a test."""

from __future__ import annotations

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify

from owm.identity import Identity
from owm.net import Network
from owm.net._core_frames import encode_frame
from owm.net._core_multistream import Listening, encode
from owm.net._core_yamux import DataReceived, Opened, Yamux
from owm.net._secure import Credentials, secure
from tests.net.conformance import ECHO
from tests.net.strangers import dial

IDENTIFY = "/ipfs/id/1.0.0"


async def visit(network: Network, identity: Identity) -> None:
    """Connect, ask on :data:`ECHO`, be identified, leave."""
    told = Identify(
        protocol_version="ipfs/0.1.0",
        agent_version="visitor",
        public_key=create_new_key_pair(identity.seed).public_key.serialize(),
        protocols=[ECHO, IDENTIFY],
    )
    async with dial(network) as stream:
        secured = await secure(stream, Credentials.of(identity), initiator=True, expected=network.peer_id)
        mux, session = Yamux(initiator=True), secured.session
        asked = mux.open()
        mux.send(asked, encode("/multistream/1.0.0") + encode(ECHO) + b"hello")
        answer, negotiations, identified = b"", dict[int, Listening](), False
        while not (identified and answer.endswith(b"hello")):
            while chunk := mux.take():
                await stream.send_all(session.seal(chunk))
            data = await stream.receive_some(65536)
            assert data, "the connection ended early"
            for event in mux.receive(session.open(bytes(data))):
                if isinstance(event, Opened):
                    negotiations[event.stream_id] = Listening(IDENTIFY.__eq__)
                elif isinstance(event, DataReceived) and event.stream_id == asked:
                    answer += event.data
                elif isinstance(event, DataReceived):
                    negotiation = negotiations[event.stream_id]
                    mux.send(event.stream_id, negotiation.receive(event.data))
                    if negotiation.selected:
                        mux.send(event.stream_id, encode_frame(told.SerializeToString()))
                        mux.finish(event.stream_id)
                        identified = True
        while chunk := mux.take():
            await stream.send_all(session.seal(chunk))
        await trio.sleep(0.01)
