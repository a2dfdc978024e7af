"""What the routes share: the backend, the limits, who is asking, and what was answered."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from quart import Request, g

from owm.api._access import Access, Caller
from owm.api._backend import Backend
from owm.api._bodies import QueryResponse
from owm.api._window import SlidingWindow
from owm.api.errors import Busy, NotFound, PromptTooLarge, RateLimited
from owm.clock import Clock
from owm.config import ApiSettings
from owm.model import ChatMessage
from owm.records import ServedModel

__all__ = ["Gateway", "Results", "version_of"]

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MAX_RESULTS = 1000
_RESULT_LIFE = 3600.0  #: seconds


class _Result(msgspec.Struct, frozen=True):
    owner: str
    at: float
    response: QueryResponse


class Results:
    """Answers kept for who asked: the newest thousand, for an hour."""

    def __init__(self, limit: int = _MAX_RESULTS, life: float = _RESULT_LIFE) -> None:
        self._limit = limit
        self._life = life
        self._results: OrderedDict[str, _Result] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def put(self, owner: str, response: QueryResponse, now: float) -> None:
        self._results[response.query_id] = _Result(owner, now, response)
        while self._results and (
            len(self._results) > self._limit or next(iter(self._results.values())).at < now - self._life
        ):
            self._results.popitem(last=False)

    def get(self, owner: str, query_id: str, now: float) -> QueryResponse:
        """Raises NotFound, in the same words, if it is unknown, too old or somebody else's."""
        result = self._results.get(query_id)
        if result is None or result.owner != owner or result.at < now - self._life:
            raise NotFound("there is no such query of yours; answers are kept for an hour")
        return result.response


class Gateway:
    """One instance per app; lives on the event loop."""

    def __init__(
        self,
        backend: Backend,
        settings: ApiSettings,
        access: Access,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.access = access
        self.clock = clock
        self.results = Results()
        self.in_flight = 0
        self.answered = 0
        self._started = clock.monotonic()
        self._random_bytes = random_bytes
        # Apart, so that a crowd of addresses cannot make the gateway forget what a key has used.
        self._windows = {False: SlidingWindow(), True: SlidingWindow()}
        self._pseudonym_key = random_bytes(32)

    @property
    def uptime(self) -> float:
        return self.clock.monotonic() - self._started

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places for requests in work. Raises Busy if all are taken."""
        if self.in_flight >= self.settings.max_concurrent:
            raise Busy("the gateway has as many requests in work as it can take; try again in 2 s", retry_after=2)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def identify(self, request: Request) -> Caller:
        """Who asks; what is left of its day goes into the response's headers. Raises Unauthorised, Forbidden."""
        g.caller = caller = await self.access.identify(request)
        return caller

    def remaining(self, caller: Caller) -> int | None:
        """How many more requests this caller has in its day; None for any number."""
        return self._windows[caller.anonymous].remaining(caller.id, caller.per_day, self.clock.monotonic())

    def charge(self, caller: Caller) -> None:
        """Count one request against the caller's day. Raises RateLimited."""
        wait = self._windows[caller.anonymous].take(caller.id, caller.per_day, self.clock.monotonic())
        if wait is not None:
            raise RateLimited(
                f"the limit of {caller.per_day} requests in 24 hours is used up; the next is free in {wait} s",
                retry_after=wait,
            )

    def check_budget(self, messages: Sequence[ChatMessage], field: str) -> None:
        """Refuse a prompt that is too long before any work is done for it.

        Tokens are estimated as one per four bytes of UTF-8, about what a BPE vocabulary gives for English, plus four
        for the template around each message. The worker counts exactly and may still refuse.

        Raises:
            PromptTooLarge: the estimate exceeds ``max_prompt_tokens``.
        """
        estimate = sum(4 + len(message.content.encode()) // 4 for message in messages)
        if estimate > self.settings.max_prompt_tokens:
            raise PromptTooLarge(
                f"the prompt has about {estimate} tokens; at most {self.settings.max_prompt_tokens} are "
                "allowed: shorten it",
                field=field,
            )

    def model(self, kind: str) -> ServedModel | None:
        """The model of this kind that the network advertises first."""
        return next((model for model in self.backend.models() if model.kind == kind), None)

    def version(self) -> str:
        """For X-OWM-Model-Version where no model answered: the default chat model's, or "none"."""
        model = self.model("chat")
        return version_of(model.sha256) if model is not None else "none"

    def limit_tokens(self, model_id: str, asked: int) -> int:
        """No more new tokens than the model's context can hold."""
        contexts = [m.context for m in self.backend.models() if m.kind == "chat" and model_id in ("", m.id)]
        return min([asked, *contexts[:1]])

    def pseudonym(self, peer: str) -> str:
        """A name for a peer that tells nobody who it is; stable until the gateway restarts."""
        return "w-" + hashlib.blake2b(peer.encode(), key=self._pseudonym_key, digest_size=6).hexdigest()

    def new_id(self, prefix: str) -> str:
        """A ULID under a prefix: sorts by time, cannot be guessed."""
        number = int(self.clock.time() * 1000) << 80 | int.from_bytes(self._random_bytes(10), "big")
        return prefix + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def version_of(sha256: str) -> str:
    """A model's version: the first 12 hex digits of its file's SHA-256."""
    return sha256[:12]
