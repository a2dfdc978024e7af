"""Passing accepted messages on, a moment later than one could: whoever sends us a copy meanwhile need not get one.

Two neighbours that learn of a message at the same time would each send it to the other. With a random moment between
receiving and forwarding one of them is first, and the other stays silent: with six links a peer gets half as many
copies. When that moment has come for one message, all that are held go along, in one RPC for each peer. Frames, not
messages, are what gossip costs, so the moment is longer after a batch of several: a busy topic is sent on a few times
a second however busy it is, a quiet one soon. The price is that moment for each hop.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from owm.gossip._core_state import Priority, State
from owm.gossip._core_wire import Message, Rpc

__all__ = ["Forwarding"]

P = TypeVar("P", bound=Hashable)

_NEVER: Final = float("inf")
_ROOM: Final = 64  # bytes of an RPC around a message's data, its topic not counted


class _Held(Generic[P]):
    """A message that is to be sent on, but not to its ``holders``."""

    __slots__ = ("holders", "message")

    def __init__(self, message: Message, holders: list[P]) -> None:
        self.message = message
        self.holders = holders


class Forwarding(Generic[P]):
    """What is held back, and until when."""

    __slots__ = ("_held", "_last", "_state", "due")

    def __init__(self, state: State[P]) -> None:
        self._state = state
        self._held: dict[bytes, _Held[P]] = {}
        self._last = 1  # messages in the last batch
        self.due = _NEVER  #: when :meth:`release` has something to do

    def __len__(self) -> int:
        return len(self._held)

    def add(self, message: Message, holders: list[P], now: float) -> None:
        """An accepted message, and who is known to have it."""
        params = self._state.params
        held = _Held(message, holders)
        if not params.forward_delay or len(self._held) >= params.max_pending:
            self._send([held])
            return
        if not self._held:
            delay = min(params.forward_delay * self._last, params.forward_delay_busy)
            self.due = now + delay * (0.25 + 0.75 * self._state.random.random())
        self._held[message.id] = held

    def copy(self, peer: P, message_id: bytes) -> None:
        """``peer`` sent us a copy."""
        held = self._held.get(message_id)
        if held is not None:
            held.holders.append(peer)

    def release(self, now: float) -> None:
        """Send all that is held, once it is time."""
        if self.due <= now:
            held, self._held, self.due = self._held, {}, _NEVER
            self._last = len(held)
            self._send(list(held.values()))

    def _send(self, batch: list[_Held[P]]) -> None:
        state = self._state
        if len(batch) == 1:  # as mostly
            rpc = Rpc(publish=(batch[0].message,))
            for peer in self._without(batch[0]):
                state.send(peer, rpc, Priority.FORWARD)
            return
        lacking: dict[P, list[Message]] = {}
        for held in batch:
            for peer in self._without(held):
                lacking.setdefault(peer, []).append(held.message)
        same: dict[tuple[bytes, ...], list[Rpc]] = {}  # most peers lack the same messages: what they get encodes once
        for peer, messages in lacking.items():
            names = tuple([message.id for message in messages])
            rpcs = same.get(names)
            if rpcs is None:
                rpcs = same[names] = self._packed(messages)
            for rpc in rpcs:
                state.send(peer, rpc, Priority.FORWARD)

    def _without(self, held: _Held[P]) -> list[P]:
        """Who of the mesh is not known to have a message."""
        message, holders = held.message, held.holders
        topic = self._state.topics.get(message.topic)
        if topic is None:
            return []
        author = message.sender
        found = [peer for peer in topic.mesh if peer not in holders and peer != author]
        if self._state.declined:
            found = [peer for peer in found if message.id not in topic.mesh[peer].dont_want]
        return found

    def _packed(self, messages: list[Message]) -> list[Rpc]:
        """As few RPCs as their size allows."""
        room = self._state.params.max_rpc // 2
        packs: list[list[Message]] = [[]]
        size = 0
        for message in messages:
            size += len(message.data) + len(message.topic) + _ROOM
            if packs[-1] and size > room:
                packs.append([])
                size = len(message.data) + len(message.topic) + _ROOM
            packs[-1].append(message)
        return [Rpc(publish=tuple(pack)) for pack in packs]
