"""What the routes share: the backend, the limits, who is asking, and what was answered."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

from quart import Request, g

from owm.api._access import Access, Caller
from owm.api._backend import Answered, Backend
from owm.api._metrics import Metrics
from owm.api._results import Results
from owm.api._streams import Sink
from owm.api._usage import Charge, Usage
from owm.api._work import Work
from owm.api.errors import ApiError, PromptTooLarge
from owm.clock import Clock
from owm.config import ApiSettings
from owm.model import ChatMessage
from owm.records import ServedModel

__all__ = ["Gateway", "version_of"]

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: Failures of ours before the first byte: they cost the caller nothing.
_GIVEN_BACK = frozenset({502, 503, 504})


class Gateway:
    """One instance per app; lives on the event loop."""

    def __init__(
        self,
        backend: Backend,
        settings: ApiSettings,
        access: Access,
        clock: Clock,
        usage: Path,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        metrics: Metrics | None = None,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.access = access
        self.clock = clock
        self.metrics = metrics or Metrics()
        self.work = Work(settings.max_concurrent, settings.query_timeout)
        self.usage = Usage(usage, clock)
        self.answered = 0
        self._started = clock.monotonic()
        self._random_bytes = random_bytes
        # Apart, so that a crowd of addresses cannot evict the answers of those who have a key.
        self._results = {False: Results(), True: Results()}
        self._pseudonym_key = random_bytes(32)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Remember what callers have used, and write it down, until the block ends. Raises TemporaryError."""
        async with self.usage.running():
            yield self

    @property
    def uptime(self) -> float:
        return self.clock.monotonic() - self._started

    @contextmanager
    def doing(self, charge: Charge, sink: Sink | None = None) -> Iterator[None]:
        """Do a request's work in one of the places, within its time.

        What ends in a failure of ours before the first byte was sent costs its caller nothing.

        Args:
            charge: what the request was counted as.
            sink: where a stream is written; None for an answer that is sent whole.

        Raises:
            Busy, Stopping, TimedOut: see :class:`Work`.
        """
        try:
            with self.work.one():
                yield
        except ApiError as error:
            if error.status in _GIVEN_BACK and (sink is None or not sink.started):
                self.usage.give_back(charge)
                if sink is not None and (remaining := self.usage.remaining(charge.caller)) is not None:
                    sink.set_header("X-RateLimit-Remaining", str(remaining))
            raise

    def note_answer(self, done: Answered, first_token: float | None) -> None:
        """Count a complete answer; ``first_token`` are the seconds to its first one, where there was any."""
        self.answered += 1
        self.metrics.answered(done.prompt_tokens, done.completion_tokens)
        if first_token is not None:
            self.metrics.first_token(first_token)

    def results(self, caller: Caller) -> Results:
        """Where the answers of such callers are kept."""
        return self._results[caller.anonymous]

    async def identify(self, request: Request) -> Caller:
        """Who asks; what is left of its day goes into the response's headers. Raises Unauthorised, Forbidden."""
        g.caller = caller = await self.access.identify(request)
        return caller

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

    def seed(self, asked: int | None) -> int:
        """The seed of one answer, below 2**32: the client's, negative ones too, or else a fresh one."""
        return int.from_bytes(self._random_bytes(4), "big") if asked is None else asked % 2**32

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
