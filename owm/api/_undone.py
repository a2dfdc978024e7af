"""What the OpenAI dialect has and this gateway does not do: refused by name rather than passed over in silence."""

from __future__ import annotations

from typing import Any, Final

from owm.api._chat_bodies import ChatCompletionRequest, ChatTurn, EmbeddingRequest
from owm.api.errors import Unprocessable

__all__ = ["refuse_undone"]

_NOTHING: Final[tuple[Any, ...]] = (None, [], {})  #: what asks for nothing in any field

#: For each field of a request the values that ask for nothing, besides null and what is empty.
_CHAT: Final[dict[str, tuple[Any, ...]]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logit_bias": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_TURN: Final = ("refusal", "annotations", "audio", "function_call", "tool_calls")


def refuse_undone(body: ChatCompletionRequest | EmbeddingRequest) -> None:
    """Raises Unprocessable, naming the field, for what a request asks and nobody here does."""
    if isinstance(body, EmbeddingRequest):
        if body.dimensions is not None:
            raise _undone("dimensions", "vectors have the model's own length")
        return
    for field, harmless in _CHAT.items():
        value = getattr(body, field)
        # True and 0.0 equal 1 and 0 in Python; a switch that is set asks for something all the same.
        if isinstance(value, bool) or (value not in _NOTHING and value not in harmless):
            raise _undone(field)
    if body.stream_options is not None and not body.stream:
        raise Unprocessable("stream_options is only allowed together with stream", field="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise Unprocessable("top_logprobs is only allowed together with logprobs", field="top_logprobs")
    for number, turn in enumerate(body.messages):
        _check_turn(turn, f"messages[{number}]")


def _check_turn(turn: ChatTurn, path: str) -> None:
    for field in _TURN:
        if getattr(turn, field) not in _NOTHING:
            raise _undone(f"{path}.{field}")
    if turn.content is None and turn.role != "assistant":
        raise Unprocessable(f"a {turn.role}'s message needs content", field=f"{path}.content")


def _undone(field: str, why: str = "") -> Unprocessable:
    return Unprocessable(f"`{field}` is not supported here{': ' * bool(why)}{why}; leave it out", field=field)
