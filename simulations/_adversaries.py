"""Adversaries: nodes that get what an honest node would get and send what they like.

To add one, write a class with the methods of :class:`Adversary`, name it in :data:`BEHAVIOURS`, and in
``Adversary.kind`` of ``_scenario.py``.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Protocol

from owm.dht._core_types import Contact, Message, MessageType
from owm.gossip._core_wire import Message as Topical
from owm.gossip._core_wire import Rpc
from simulations._engine import SECOND

if TYPE_CHECKING:
    from simulations._node import Node
    from simulations._world import World

__all__ = ["BEHAVIOURS", "Adversary"]


class Adversary(Protocol):
    """What the world calls."""

    def __init__(self, world: World, nodes: list[Node]) -> None:
        """``nodes`` are the attacker's."""

    def start(self) -> None:
        """Called once when the attack begins."""

    def answer(self, node: Node, message: Message) -> Message | None:
        """Answer a DHT query."""


class _Colluders:
    """Attackers that know each other and name only each other."""

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world = world
        self.nodes = nodes
        self.random: Random = world.heap.stream("adversary")
        self._contacts = [node.contact for node in nodes]

    def start(self) -> None:
        """Ask honest nodes things, as newcomers do, to get into their tables."""
        for node in self.nodes:
            self.world.heap.at(self.random.randrange(10 * SECOND), self._greet, node)

    def _greet(self, node: Node) -> None:
        for _ in range(8):
            victim = self.world.random_honest(self.random)
            message = Message(MessageType.FIND_NODE, victim.contact.id, sender=node.contact)
            self.world.send_query(node, victim.contact, -1, message)
        self.world.heap.at(self.world.heap.now + 10 * SECOND, self._greet, node)

    def nearest(self, key: int) -> tuple[Contact, ...]:
        return tuple(sorted(self._contacts, key=lambda contact: contact.key ^ key)[:20])

    def answer(self, node: Node, message: Message) -> Message | None:
        from owm.dht._core_types import key_of

        if message.type in (MessageType.ADD_PROVIDER, MessageType.PUT_VALUE):
            return Message(message.type, message.key, message.value)  # taken, and thrown away
        closer = self.nearest(key_of(message.key))
        return Message(message.type, message.key, closer=closer, sender=node.contact)


class Flood:
    """Floods the topic with messages that fail validation, and with control messages."""

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world = world
        self.nodes = nodes
        self.random = world.heap.stream("adversary")
        self._interval = int(SECOND / max(world.scenario.adversary.rate, 0.1))

    def start(self) -> None:
        for node in self.nodes:
            self.world.heap.at(self.random.randrange(SECOND), self._send, node)

    def _send(self, node: Node) -> None:
        for victim in list(node.links):
            data = self.random.randbytes(16) + b"invalid" + bytes(self.world.scenario.workload.message_bytes)
            rpc = Rpc(
                publish=(Topical(self.world.topic, data),),
                ihave=((self.world.topic, tuple(self.random.randbytes(16) for _ in range(8))),),
                graft=(self.world.topic,),
            )
            self.world.send_rpc(node.index, victim, rpc)
        self.world.heap.at(self.world.heap.now + self._interval, self._send, node)

    def answer(self, node: Node, message: Message) -> Message | None:
        return None


BEHAVIOURS: dict[str, type[Adversary]] = {"sybil": _Colluders, "eclipse": _Colluders, "flood": Flood}
