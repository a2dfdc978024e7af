"""One operation of the DHT: lookups towards a key, then perhaps one message to each of the peers found."""

from __future__ import annotations

from owm.dht._core_lookup import Lookup
from owm.dht._core_types import Contact, Kind, Message, Result

__all__ = ["FanOut", "Operation", "Whereabouts"]

_MAX_NAMED = 32  # variants of a peer's addresses that are kept
_MAX_PROBES = 8  # of them tried


class FanOut:
    """One message to many peers: replacements go out for those that fail or are slow.

    Args:
        targets: whom to ask, the most wanted first.
        wanted: answers after which it ends; None: ask them all.
    """

    __slots__ = ("_next", "_targets", "answered", "message", "pending", "wanted")

    def __init__(self, message: Message, targets: list[Contact], wanted: int | None) -> None:
        self.message = message
        self.wanted = wanted
        self.answered = 0
        self.pending = 0  # not yet answered, failed or slow
        self._targets = targets
        self._next = 0

    def next_targets(self) -> list[Contact]:
        """Whom to send to now; they count as pending from here on."""
        end = len(self._targets)
        if self.wanted is not None:
            end = min(end, self._next + max(0, self.wanted - self.answered - self.pending))
        targets = self._targets[self._next : end]
        self._next = end
        self.pending += len(targets)
        return targets

    @property
    def ended(self) -> bool:
        if self.wanted is not None and self.answered >= self.wanted:
            return True
        return not self.pending and self._next >= len(self._targets)


class Whereabouts:
    """Where a sought peer is said to be, until it has answered there itself: whoever names it may be lying.

    It is asked first at the addresses that most peers name, at two of them at once.
    """

    __slots__ = ("_named", "_tried", "open", "pending")

    def __init__(self) -> None:
        self.open = 0  # neither answered nor failed
        self.pending = 0  # of them, not slow yet
        self._named: dict[tuple[str, ...], tuple[Contact, int]] = {}  # with how many named it so
        self._tried: set[tuple[str, ...]] = set()

    def note(self, contact: Contact) -> None:
        """A peer has named it."""
        known = self._named.get(contact.addresses)
        if known is not None:
            self._named[contact.addresses] = (known[0], known[1] + 1)
        elif contact.addresses and len(self._named) < _MAX_NAMED:
            self._named[contact.addresses] = (contact, 1)

    def names(self, address: str) -> bool:
        """Whether somebody has named that address."""
        return any(address in addresses for addresses in self._named)

    def next_probe(self) -> Contact | None:
        """Where to ask now; it counts as pending from here on."""
        if self.pending >= 2 or len(self._tried) >= _MAX_PROBES:
            return None
        untried = [known for addresses, known in self._named.items() if addresses not in self._tried]
        if not untried:
            return None
        contact = max(untried, key=lambda known: known[1])[0]
        self._tried.add(contact.addresses)
        self.open += 1
        self.pending += 1
        return contact


class Operation:
    """The state of a running operation; the core moves it on."""

    __slots__ = (
        "answers",
        "best",
        "deadline",
        "fan_out",
        "first_seen",
        "found",
        "id",
        "joins",
        "key",
        "kind",
        "limit",
        "lookups",
        "messages",
        "outdated",
        "providers",
        "queries",
        "radius",
        "sequence",
        "split",
        "started",
        "stored_value",
        "strangers",
        "target",
        "unsized",
        "whereabouts",
    )

    def __init__(self, number: int, kind: Kind, key: bytes, target: int, now: float, deadline: float) -> None:
        self.id = number
        self.kind = kind
        self.key = key
        self.target = target
        self.started = now
        self.deadline = deadline
        self.lookups: list[Lookup] = []
        self.messages: list[Message] = []  # what each lookup asks
        self.fan_out: FanOut | None = None
        self.queries = 0
        self.radius = 0  # of the region; 0: an ordinary operation
        self.limit = 0  # providers wanted
        self.stored_value: bytes | None = None  # what put stores
        self.best: bytes | None = None  # get's value so far
        self.sequence = -1
        self.answers = 0  # peers that had something
        self.outdated: list[Contact] = []  # peers whose value was older than the best
        self.first_seen: list[Contact] = []  # peers that gave the best value
        self.providers: dict[bytes, tuple[Contact, int]] = {}  # with how many named it
        self.strangers = 0  # peers that answered and were new to the table
        self.joins = False  # the first look at the network: the rest of the table is filled next
        self.found: Contact | None = None  # the sought peer, once it was reached
        self.whereabouts = Whereabouts() if kind is Kind.FIND_PEER else None
        self.unsized = False  # a region is wanted, and its size has to be learnt first
        self.split = False  # asks a remembered peer for a part of the network that we have lost

    def note_providers(self, providers: tuple[Contact, ...], cap: int) -> int:
        """Merge one peer's answer; returns how many were new."""
        new = 0
        for contact in providers[:cap]:
            known = self.providers.get(contact.id)
            if known is None:
                self.providers[contact.id] = (contact, 1)
                new += 1
            else:
                self.providers[contact.id] = (known[0] if known[0].addresses else contact, known[1] + 1)
        return new

    def note_value(self, value: bytes, sequence: int, holder: Contact) -> None:
        """Merge a valid value; the highest sequence wins."""
        self.answers += 1
        if sequence > self.sequence:
            self.outdated.extend(self.first_seen)
            self.first_seen = [holder]
            self.best, self.sequence = value, sequence
        elif sequence < self.sequence:
            self.outdated.append(holder)
        else:
            self.first_seen.append(holder)

    def result(self, closest: list[Contact], now: float) -> Result:
        providers: list[Contact] | None = None
        if self.kind is Kind.FIND_PROVIDERS:
            # Those whom most peers name come first: a lone liar's inventions come last.
            ranked = sorted(self.providers.values(), key=lambda known: -known[1])
            providers = [contact for contact, _ in ranked[: self.limit]]
        return Result(
            kind=self.kind,
            closest=closest,
            peer=self.found,
            value=self.best,
            providers=providers,
            stored=self.fan_out.answered if self.fan_out and self.kind in (Kind.PUT, Kind.PROVIDE) else 0,
            queries=self.queries,
            hops=max((lookup.hops for lookup in self.lookups), default=0),
            duration=now - self.started,
        )
