"""libp2p's pubsub as others speak it: any bytes on any topic, each message numbered and signed by its author.

Our own networks carry signed records (:class:`GossipService`); this is for living in the same net as go-libp2p and
js-libp2p, whose default is strict signing (https://github.com/libp2p/specs/blob/master/pubsub/README.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Self

import structlog
import trio

from owm.clock import Clock
from owm.gossip._core import GossipCore, Verdict, libp2p_message_id
from owm.gossip._core_params import GossipParams, SignaturePolicy
from owm.gossip._core_wire import Message
from owm.gossip._exchange import PeerExchange
from owm.gossip._identifiers import is_signed_by_its_author, sign_message
from owm.gossip._shell import PROTOCOLS, GossipShell
from owm.identity import Identity, PeerId
from owm.net import Network

__all__ = ["PubSub", "TopicMessage"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TopicMessage:
    """A message whose signature was verified."""

    topic: str
    data: bytes
    author: PeerId
    forwarder: PeerId


class PubSub:
    """Strictly signed topics on ``network``.

    Args:
        network: running before we are.
        identity: signs what we publish.
        clock: wall time is where our sequence numbers start.
        random: the source of all chance.
        params: of the core; the policy is set to strict signing.
        protocols: offered and tried in this order.
        validator: whether a well-signed message may be passed on and delivered; None: all may. If it raises, that is
            logged, the message is ignored and nobody is blamed.
        buffer: messages that wait for a reader; the newest are lost beyond it.
        trusted: peers whose recommendations of others are taken from the start; others have to earn it.
    """

    def __init__(
        self,
        network: Network,
        *,
        identity: Identity,
        clock: Clock,
        random: Random,
        params: GossipParams = GossipParams(),  # noqa: B008 - frozen
        protocols: Sequence[str] = PROTOCOLS,
        validator: Callable[[TopicMessage], Verdict] | None = None,
        buffer: int = 1024,
        trusted: Collection[PeerId] = (),
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._validator = validator
        self._buffer = buffer
        params = replace(params, policy=SignaturePolicy.STRICT_SIGN)
        self.core: GossipCore[PeerId] = GossipCore(
            network.peer_id, params, random, libp2p_message_id, network.peer_record
        )
        exchange = PeerExchange(network, random)
        self._shell = GossipShell(network, self.core, clock, protocols, self._judge, self._deliver, exchange, trusted)
        self._sequence = int(clock.time() * 1e9)
        self._readers: dict[str, list[trio.MemorySendChannel[TopicMessage]]] = {}
        self.lost = 0  #: messages that a reader was too slow for

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve and heartbeat until the block ends; subscriptions then end too."""
        try:
            async with self._shell.running():
                yield self
        finally:
            for topic in list(self._readers):
                self._end(topic)

    def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[TopicMessage]:
        """Join ``topic``; every message of others arrives once."""
        send, receive = trio.open_memory_channel[TopicMessage](self._buffer)
        if topic not in self._readers:
            self._readers[topic] = []
            self._shell.apply(self.core.subscribe(topic, self._clock.monotonic()))
        self._readers[topic].append(send)
        return receive

    def unsubscribe(self, topic: str) -> None:
        """Leave ``topic``; its subscriptions end."""
        if topic in self._readers:
            self._end(topic)
            self._shell.apply(self.core.unsubscribe(topic, self._clock.monotonic()))

    async def publish(self, topic: str, data: bytes) -> int:
        """Sign and send; returns the number of peers that it was sent to at once.

        Raises:
            ValueError: the message is too large.
        """
        await trio.lowlevel.checkpoint()
        self._sequence += 1
        message = sign_message(self._identity, topic, data, self._sequence.to_bytes(8, "big"))
        return self._shell.apply(self.core.publish(message, self._clock.monotonic()))

    def _end(self, topic: str) -> None:
        for send in self._readers.pop(topic):
            send.close()

    def _judge(self, message: Message, peer: PeerId) -> Verdict:
        if not is_signed_by_its_author(message):
            return Verdict.REJECT
        if self._validator is None:
            return Verdict.ACCEPT
        try:
            return self._validator(_opened(message, peer))
        except Exception:  # noqa: BLE001 - a validator's defect must not end the peer's stream
            _log.exception("a validator failed", topic=message.topic)
            return Verdict.IGNORE

    def _deliver(self, message: Message, peer: PeerId) -> None:
        found = _opened(message, peer)
        readers = self._readers.get(message.topic, [])
        for send in list(readers):
            try:
                send.send_nowait(found)
            except trio.WouldBlock:
                self.lost += 1
            except trio.BrokenResourceError:
                readers.remove(send)


def _opened(message: Message, peer: PeerId) -> TopicMessage:
    assert message.sender is not None  # the core refuses messages without author under this policy
    return TopicMessage(message.topic, message.data, PeerId(message.sender), peer)
