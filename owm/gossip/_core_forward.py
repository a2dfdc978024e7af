"""Passing accepted messages on, a moment later than one could: whoever sends us a copy meanwhile need not get one.

Two neighbours that learn of a message at the same time would each send it to the other. With a random moment between
receiving and forwarding one of them is first, and the other stays silent: with six links a peer gets half as many
copies. The cost is that moment for each hop.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from owm.gossip._core_state import Peer, Priority, State
from owm.gossip._core_wire import Message, Rpc

__all__ = ["Forwarding"]

P = TypeVar("P", bound=Hashable)

_NEVER: Final = float("inf")


class _Held(Generic[P]):
    """A message that is to be sent on at ``due``, but not to its ``holders``."""

    __slots__ = ("due", "holders", "message")

    def __init__(self, message: Message, holders: list[Peer[P]], due: float) -> None:
        self.message = message
        self.holders = holders
        self.due = due


class Forwarding(Generic[P]):
    """What is held back, and until when."""

    __slots__ = ("_held", "_state", "due")

    def __init__(self, state: State[P]) -> None:
        self._state = state
        self._held: dict[bytes, _Held[P]] = {}
        self.due = _NEVER  #: when :meth:`release` has something to do

    def __len__(self) -> int:
        return len(self._held)

    def add(self, message: Message, holders: list[Peer[P]], now: float) -> None:
        """An accepted message, and who is known to have it."""
        delay = self._state.params.forward_delay
        if not delay or len(self._held) >= self._state.params.max_pending:
            self._send(message, holders)
            return
        due = now + delay * (0.25 + 0.75 * self._state.random.random())
        self._held[message.id] = _Held(message, holders, due)
        self.due = min(self.due, due)

    def copy(self, peer: Peer[P], message_id: bytes) -> None:
        """``peer`` sent us a copy."""
        held = self._held.get(message_id)
        if held is not None:
            held.holders.append(peer)

    def release(self, now: float) -> None:
        """Send what is due."""
        due = [held for held in self._held.values() if held.due <= now]
        for held in due:
            del self._held[held.message.id]
            self._send(held.message, held.holders)
        self.due = min((held.due for held in self._held.values()), default=_NEVER)

    def _send(self, message: Message, holders: list[Peer[P]]) -> None:
        topic = self._state.topics.get(message.topic)
        if topic is None:
            return
        rpc = Rpc(publish=(message,))
        id_, author = message.id, message.sender
        for peer in topic.mesh.values():
            if id_ not in peer.dont_want and peer.id != author and peer not in holders:
                self._state.send(peer.id, rpc, Priority.FORWARD)
