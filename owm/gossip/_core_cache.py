"""What a peer remembers of messages: which it has seen, and which it can still give."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from owm.gossip._core_wire import Message

__all__ = ["Cached", "MessageCache", "SeenCache"]


class SeenCache:
    """Ids seen within the last ``ttl`` seconds, and up to as long again: two generations cost no time stamps.

    Args:
        ttl: seconds.
        capacity: ids; a full generation ages early.
    """

    __slots__ = ("_capacity", "_new", "_old", "_since", "_ttl")

    def __init__(self, ttl: float, capacity: int) -> None:
        self._ttl = ttl
        self._capacity = max(1, capacity // 2)
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()
        self._since = float("-inf")

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._new or id_ in self._old

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def add(self, id_: bytes) -> None:
        if len(self._new) >= self._capacity:
            self._old, self._new = self._new, set()
        self._new.add(id_)

    def discard(self, id_: bytes) -> None:
        self._new.discard(id_)
        self._old.discard(id_)

    def age(self, now: float) -> None:
        """To be called now and then."""
        if now - self._since >= self._ttl:
            if self._new or self._old:
                self._old, self._new = self._new, set()
            self._since = now


class Cached:
    """A message that can still be given."""

    __slots__ = ("asked", "born", "message", "told")

    def __init__(self, message: Message, born: int) -> None:
        self.message = message
        self.born = born  #: the heartbeat after which it came
        self.told: set[object] = set()  #: who announced it to us, or was told of it by us
        self.asked: dict[object, int] | None = None  #: how often who asked for it


_born: Final = attrgetter("born")


class MessageCache:
    """The messages of the last heartbeats (mcache of the specification), at most ``capacity``: the oldest go first."""

    __slots__ = ("_capacity", "_held", "_history", "_tick")

    def __init__(self, history: int, capacity: int) -> None:
        self._history = history
        self._capacity = capacity
        self._held: dict[bytes, Cached] = {}  # in order of arrival
        self._tick = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, message: Message) -> None:
        if message.id in self._held:
            return
        if len(self._held) >= self._capacity:
            del self._held[next(iter(self._held))]
        self._held[message.id] = Cached(message, self._tick)

    def get(self, id_: bytes) -> Message | None:
        held = self._held.get(id_)
        return held.message if held is not None else None

    def take(self, id_: bytes, peer: object, limit: int) -> Message | None:
        """The message for a peer that asks for it, unless it has asked ``limit`` times before."""
        held = self._held.get(id_)
        if held is None:
            return None
        if held.asked is None:
            held.asked = {}
        count = held.asked[peer] = held.asked.get(peer, 0) + 1
        return held.message if count <= limit else None

    def told(self, id_: bytes) -> set[object] | None:
        """Who announced the message to us, or was told of it by us; to be added to. None when we do not have it."""
        held = self._held.get(id_)
        return held.told if held is not None else None

    def recent(self, heartbeats: int) -> dict[str, list[Cached]]:
        """What came within the last heartbeats, by topic, the latest heartbeat first."""
        since = self._tick - heartbeats
        found = [held for held in self._held.values() if held.born > since]
        found.sort(key=_born, reverse=True)  # which leaves those of one heartbeat in order of arrival
        out: dict[str, list[Cached]] = {}
        for held in found:
            out.setdefault(held.message.topic, []).append(held)
        return out

    def shift(self) -> None:
        """One heartbeat has passed."""
        self._tick += 1
        if self._held:
            last = self._tick - self._history
            for id_ in [id_ for id_, held in self._held.items() if held.born <= last]:
                del self._held[id_]
