"""What a peer remembers of messages: which it has seen, and which it can still give."""

from __future__ import annotations

from owm.gossip._core_wire import Message

__all__ = ["MessageCache", "SeenCache"]


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


class MessageCache:
    """The messages of the last heartbeats (mcache of the specification), at most ``capacity``: the oldest go first."""

    __slots__ = ("_capacity", "_messages", "_sent", "_told", "_windows")

    def __init__(self, history: int, capacity: int) -> None:
        self._capacity = capacity
        self._messages: dict[bytes, Message] = {}  # in order of arrival
        self._windows: list[list[Message]] = [[] for _ in range(history)]
        self._sent: dict[bytes, dict[object, int]] = {}
        self._told: dict[bytes, set[object]] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        if message.id in self._messages:
            return
        if len(self._messages) >= self._capacity:
            self._drop(next(iter(self._messages)))
        self._messages[message.id] = message
        self._told[message.id] = set()
        self._windows[0].append(message)

    def get(self, id_: bytes) -> Message | None:
        return self._messages.get(id_)

    def take(self, id_: bytes, peer: object, limit: int) -> Message | None:
        """The message for a peer that asks for it, unless it has asked ``limit`` times before."""
        message = self._messages.get(id_)
        if message is None:
            return None
        counts = self._sent.setdefault(id_, {})
        counts[peer] = counts.get(peer, 0) + 1
        return message if counts[peer] <= limit else None

    def told(self, id_: bytes) -> set[object] | None:
        """Who announced the message to us, or was told of it by us; to be added to. None when we do not have it."""
        return self._told.get(id_)

    def recent(self, windows: int) -> dict[str, list[tuple[bytes, set[object]]]]:
        """Ids of the last ``windows`` heartbeats, by topic, each with who knows of it; see :meth:`told`."""
        out: dict[str, list[tuple[bytes, set[object]]]] = {}
        for window in self._windows[:windows]:
            for message in window:
                told = self._told.get(message.id)
                if told is not None:
                    out.setdefault(message.topic, []).append((message.id, told))
        return out

    def shift(self) -> None:
        """One heartbeat has passed."""
        last = self._windows.pop()
        for message in last:
            self._drop(message.id)
        last.clear()
        self._windows.insert(0, last)

    def _drop(self, id_: bytes) -> None:
        self._messages.pop(id_, None)
        self._sent.pop(id_, None)
        self._told.pop(id_, None)
