"""Iterative lookups over one or several disjoint paths.

Queries go out as soon as the window has room, not in rounds. A query that takes long stops holding up the window, and
its answer still counts when it comes. With several paths no peer serves on two of them (S/Kademlia, Baumgart and Mies
2007), so one liar spoils one path only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from owm.dht._core_types import Contact, DhtParams

__all__ = ["Candidate", "Lookup"]

NEW, WAITING, SLOW, ANSWERED, FAILED = range(5)


class Candidate:
    """A peer that somebody has named on the way to the target."""

    __slots__ = ("contact", "distance", "hops", "path", "state")

    def __init__(self, contact: Contact, distance: int, hops: int, path: int) -> None:
        self.contact = contact
        self.distance = distance
        self.hops = hops
        self.path = path
        self.state = NEW


class _Path:
    __slots__ = ("answered", "done", "ranked", "waiting", "wide")

    def __init__(self) -> None:
        self.ranked: list[int] = []  # distances, nearest first
        self.waiting = 0
        self.answered = False
        self.wide = False
        self.done = False


class Lookup:
    """The search for the peers nearest to ``target``.

    Args:
        target: the point of the key space.
        seeds: where to start, nearest first; they are dealt out to the paths.
        paths: how many disjoint paths.
        exhaust: ask every candidate nearer than this distance before ending; 0 for the usual end.
        limit: queries after which it ends, so that a crowd at the target does not make it endless; 0 for no limit.
        sought: leave out the very peer that has the target as its key, for it is asked apart.
    """

    __slots__ = (
        "_beta",
        "_candidates",
        "_exhaust",
        "_keep",
        "_left",
        "_params",
        "_paths",
        "_sought",
        "cut_short",
        "hops",
        "own",
        "target",
    )

    def __init__(
        self,
        target: int,
        seeds: list[Contact],
        params: DhtParams,
        *,
        own: int,
        paths: int = 1,
        beta: int | None = None,
        exhaust: int = 0,
        limit: int = 0,
        sought: bool = False,
    ) -> None:
        self.target = target
        self.own = own
        self.cut_short = False  # enough was found before it came to its end
        self._left = limit or 1 << 30
        self._sought = sought
        self.hops = 0
        self._params = params
        self._beta = beta or params.beta
        self._exhaust = exhaust
        self._keep = params.k * 2 if not exhaust else 1024
        self._candidates: dict[int, Candidate] = {}
        self._paths = [_Path() for _ in range(max(1, min(paths, len(seeds))))]
        for index, seed in enumerate(seeds):
            self._offer((seed,), index % len(self._paths), 0)

    def _offer(self, contacts: Iterable[Contact], path: int, hops: int) -> None:
        target, candidates, ranked = self.target, self._candidates, self._paths[path].ranked
        for contact in contacts:
            key = contact.key
            distance = key ^ target
            if distance in candidates or key == self.own or (self._sought and not distance):
                continue
            if len(ranked) >= self._keep:
                if distance >= ranked[-1]:
                    continue
                dropped = candidates[ranked[-1]]
                if dropped.state == NEW:
                    ranked.pop()
                    del candidates[dropped.distance]
            candidates[distance] = Candidate(contact, distance, hops, path)
            insort(ranked, distance)

    def next_queries(self) -> list[Candidate]:
        """Whom to ask now; they count as waiting from here on."""
        wanted: list[Candidate] = []
        alpha, beta, candidates = self._params.alpha, self._beta, self._candidates
        for path in self._paths:
            if path.done:
                continue
            # Several paths start with one query each: most values are found by then.
            window = alpha if len(self._paths) == 1 or path.wide else 1
            good = pending = slow = 0
            for distance in path.ranked:
                candidate = candidates[distance]
                state = candidate.state
                if state == ANSWERED:
                    good += 1
                    if good >= beta and not pending and distance >= self._exhaust:
                        path.done = True
                        break
                elif state == WAITING:
                    pending += 1
                elif state == SLOW:
                    slow += 1
                elif state == NEW:
                    if good >= beta and distance >= self._exhaust:
                        path.done = not pending
                        break
                    if path.waiting >= window:
                        break
                    if not self._left:
                        path.done = not path.waiting
                        break
                    self._left -= 1
                    candidate.state = WAITING
                    path.waiting += 1
                    pending += 1
                    wanted.append(candidate)
            else:
                # Whoever is slow is waited for only when nobody else is left.
                path.done = not path.waiting and (not slow or good >= beta)
        return wanted

    @property
    def ended(self) -> bool:
        """Whether every path has ended. Ask after :meth:`next_queries`."""
        return all(path.done for path in self._paths)

    def widen(self) -> bool:
        """Go on and ask all of the k nearest, where fewer were enough so far; False when that has been done."""
        if self._beta >= self._params.k:
            return False
        self._beta = self._params.k
        for path in self._paths:
            path.done = False
        return True

    def stop(self) -> None:
        """End now: enough was found."""
        self.cut_short = True
        for path in self._paths:
            path.done = True

    def _settle(self, candidate: Candidate, state: int) -> None:
        if candidate.state == WAITING:
            self._paths[candidate.path].waiting -= 1
        candidate.state = state

    def answered(self, candidate: Candidate, closer: tuple[Contact, ...], *, found: bool = False) -> None:
        """A peer has named peers that it says are closer. ``found``: it also had what we look for."""
        self._settle(candidate, ANSWERED)
        path = self._paths[candidate.path]
        path.answered = True
        path.wide = path.wide or not found  # on a path that delivers there is no hurry
        hops = candidate.hops + 1
        self.hops = max(self.hops, hops)
        self._offer(closer[: self._params.k], candidate.path, hops)

    def slow(self, candidate: Candidate) -> None:
        """A query takes long: somebody else may be asked meanwhile."""
        if candidate.state == WAITING:
            self._settle(candidate, SLOW)
            self._paths[candidate.path].wide = True

    def failed(self, candidate: Candidate) -> None:
        self._settle(candidate, FAILED)

    def nearest(self, count: int, *, answered: bool) -> list[Contact]:
        """The nearest peers over all paths: those that answered, or all that were named and did not fail."""
        found: list[Contact] = []
        for distance in sorted(self._candidates):
            candidate = self._candidates[distance]
            if candidate.state == ANSWERED or (not answered and candidate.state in (NEW, WAITING)):
                found.append(candidate.contact)
                if len(found) >= count:
                    break
        return found

    def reached(self, radius: int, count: int) -> bool:
        """Whether ``count`` peers within ``radius`` are known and one has answered: the optimistic end of a store."""
        if not any(path.answered for path in self._paths):
            return False
        return sum(len(path.ranked[: bisect_left(path.ranked, radius)]) for path in self._paths) >= count
