"""What a server of OpenAI's dialect says, taken apart without I/O. It is a stranger: every size is bounded.

All functions raise :class:`EngineError`, and nothing else, for what does not follow the dialect.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from owm.model.errors import EngineError

__all__ = ["MOST_LINE", "Chunk", "EventData", "parse_chunk", "parse_models", "parse_vectors"]

MOST_LINE: Final = 1 << 20  #: bytes of one line of a stream

_T = TypeVar("_T")
_Count = Annotated[int, Meta(ge=0, le=2**31)]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Row(msgspec.Struct):
    index: _Count
    embedding: list[float]


class _Rows(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One piece of a streamed answer."""

    texts: tuple[str, ...] = ()  #: none of them empty
    finish: str = ""  #: "stop" or "length" once the answer has ended
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class EventData:
    """Cuts the bytes of an event stream into the data of its events; keeps at most one unfinished line."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def kept(self) -> int:
        """Bytes of the unfinished line."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The data lines that are complete now, without the name of the field.

        Raises:
            EngineError: a line is longer than MOST_LINE, ended or not.
        """
        start, found = 0, []
        while (end := data.find(b"\n", start)) >= 0:
            self._keep(data[start:end])
            line = bytes(self._rest.rstrip(b"\r"))
            self._rest.clear()
            start = end + 1
            if line.startswith(b"data:"):
                found.append(line[5:].strip())
        self._keep(data[start:])
        return found

    def _keep(self, data: bytes) -> None:
        if len(self._rest) + len(data) > MOST_LINE:
            raise EngineError("the server behind this worker sent a line without end")
        self._rest += data


def parse_chunk(data: bytes) -> Chunk:
    """One event of a chat stream; raises EngineError also for an error that the server reports."""
    found = _decode(data, _Chunk)
    if found.error is not None:
        raise EngineError(f"the server behind this worker failed: {str(found.error)[:300]}")
    texts, finish = [], ""
    for choice in found.choices or ():
        if choice.delta is not None and choice.delta.content:
            texts.append(choice.delta.content)
        if choice.finish_reason:
            finish = "length" if choice.finish_reason == "length" else "stop"
    usage = found.usage or _Usage()
    return Chunk(tuple(texts), finish, usage.prompt_tokens, usage.completion_tokens)


def parse_models(data: bytes) -> tuple[str, ...]:
    """The ids that ``/models`` lists."""
    return tuple(model.id for model in _decode(data, _Models).data)


def parse_vectors(data: bytes, count: int) -> tuple[tuple[tuple[float, ...], ...], int]:
    """The vectors of ``/embeddings``, one per text in their order and of unit length, and the prompt's tokens."""
    found = _decode(data, _Rows)
    rows = sorted(found.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(count)):
        raise EngineError("the server behind this worker sent another number of vectors than texts")
    if len({len(row.embedding) for row in rows}) > 1:
        raise EngineError("the server behind this worker sent vectors of several lengths")
    tokens = found.usage.prompt_tokens if found.usage else None
    return tuple(_unit(row.embedding) for row in rows), tokens or 0


def _unit(vector: list[float]) -> tuple[float, ...]:
    length = math.hypot(*vector)
    if not 0 < length < math.inf:
        raise EngineError("the server behind this worker sent a vector without a direction")
    return tuple(value / length for value in vector)


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise EngineError(f"the server behind this worker sent what is not in OpenAI's dialect: {error}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the server behind this worker sent what is not JSON: {error}") from error
