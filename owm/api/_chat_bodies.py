"""Bodies of the OpenAI dialect: what its clients send and expect.

Fields that would change the answer and are not done here are refused when they ask for something; fields that change
nothing are accepted; all others are refused, so that nobody waits for an effect that never comes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatCompletionRequest",
    "ChatReply",
    "ChatTurn",
    "ChoiceLogprobs",
    "ChunkChoice",
    "ChunkDelta",
    "EmbeddingList",
    "EmbeddingRequest",
    "EmbeddingRow",
    "ModelEntry",
    "ModelList",
    "TextPart",
    "TokenLogprob",
    "Usage",
]

_Text = Annotated[str, Meta(max_length=1_000_000)]
_Inert = Annotated[Any, Meta(description="Accepted; changes nothing.")]
_Undone = Annotated[Any, Meta(description="Not done here: refused unless it is null or asks for nothing.")]


class TextPart(msgspec.Struct, frozen=True):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: _Text


class ChatTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        _Text | Annotated[tuple[TextPart, ...], Meta(max_length=64)] | None,
        Meta(description="Only an assistant's may be null or left out."),
    ] = None
    name: _Inert = None
    refusal: _Undone = None
    annotations: _Undone = None
    audio: _Undone = None
    function_call: _Undone = None
    tool_calls: _Undone = None

    @property
    def text(self) -> str:
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to stream."""

    include_usage: Annotated[bool | None, Meta(description="End with a chunk that holds the usage.")] = None
    include_obfuscation: _Inert = None


class ChatCompletionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A conversation to continue."""

    messages: Annotated[tuple[ChatTurn, ...], Meta(min_length=1, max_length=256, description="The oldest first.")]
    model: Annotated[str, Meta(max_length=128, description="Empty for the network's chat model.")] = ""
    max_tokens: (
        Annotated[int, Meta(ge=1, le=32_768, description="At most so many new tokens; 256 if left out.")] | None
    ) = None
    max_completion_tokens: (
        Annotated[int, Meta(ge=1, le=32_768, description="As max_tokens, before which it goes.")] | None
    ) = None
    temperature: (
        Annotated[float, Meta(ge=0, le=2, description="1 if left out; 0 always takes the likeliest token.")] | None
    ) = None
    top_p: Annotated[float, Meta(gt=0, le=1, description="1 if left out.")] | None = None
    seed: (
        Annotated[
            int,
            Meta(
                ge=-(2**63),
                le=2**63 - 1,
                description="The same seed gives the same answer; the lowest 32 bits count. A random one if left out.",
            ),
        ]
        | None
    ) = None
    stop: (
        Annotated[str, Meta(min_length=1, max_length=256)]
        | Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=4)]
        | None
    ) = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, Meta(description="Only together with stream.")] = None
    logprobs: Annotated[
        bool | None, Meta(description="Give each token's natural log-probability, where the worker says it.")
    ] = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=0, description="The likeliest tokens beside it are not told.")] | None
    ) = None
    tools: _Undone = None
    tool_choice: _Undone = None
    functions: _Undone = None
    function_call: _Undone = None
    response_format: _Undone = None
    modalities: _Undone = None
    audio: _Undone = None
    logit_bias: _Undone = None
    frequency_penalty: _Undone = None
    presence_penalty: _Undone = None
    reasoning_effort: _Undone = None
    verbosity: _Undone = None
    web_search_options: _Undone = None
    metadata: _Inert = None
    parallel_tool_calls: _Inert = None
    prediction: _Inert = None
    prompt_cache_key: _Inert = None
    safety_identifier: _Inert = None
    service_tier: _Inert = None
    store: _Inert = None
    user: _Inert = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the worker's receipt counts them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token; its text is empty while a character is incomplete."""

    token: str
    logprob: Annotated[float, Meta(description="Natural logarithm; -9999 for one that is as good as impossible.")]
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[Any, ...] = ()


class ChoiceLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[TokenLogprob, ...]
    refusal: None = None


class ChatReply(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: ChatReply
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class ChunkDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[ModelEntry, ...]
    object: Literal["list"] = "list"


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Texts to embed."""

    input: _Text | Annotated[tuple[_Text, ...], Meta(min_length=1, max_length=256)]
    model: Annotated[str, Meta(max_length=128, description="Empty for the network's embedding model.")] = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: _Undone = None
    user: _Inert = None


class EmbeddingRow(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    embedding: Any  #: a list of numbers, or their little-endian float32 in base64
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[EmbeddingRow, ...]
    model: str
    usage: Usage
    object: Literal["list"] = "list"
