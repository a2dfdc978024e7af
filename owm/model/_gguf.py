"""The head of a GGUF file, read with bounds before an engine sees the file.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in the file is executed; a pickle, a zip or anything
else that is not GGUF is refused by its first bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from owm.model.errors import BadWeights

__all__ = ["GgufHeader", "SpecialTokens", "Vocabulary", "check_gguf", "special_tokens", "vocabulary"]

_MAGIC: Final = b"GGUF"
_MOST_ENTRIES: Final = 100_000
_MOST_STRING: Final = 16 * 2**20
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_TOKENS: Final = 2**20
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What we use of the metadata."""

    name: str = ""
    architecture: str = ""
    context: int = 0  #: tokens
    tensors: int = 0


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The texts that a vocabulary reads as one token each."""

    control: tuple[str, ...] = ()  #: they steer the model; tokenizers read them as such only when asked to
    user_defined: tuple[
        str, ...
    ] = ()  #: always read as one token: runs of spaces, tags, in some models markers of turns


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model."""

    model: str  #: how their texts are written: "gpt2", "llama", ...
    tokens: tuple[tuple[str, int], ...]  #: text and type, in the order of their ids

    @property
    def special(self) -> SpecialTokens:
        return SpecialTokens(
            tuple(text for text, kind in self.tokens if text and kind in (_UNKNOWN, _CONTROL)),
            tuple(text for text, kind in self.tokens if text and kind == _USER_DEFINED),
        )


def vocabulary(path: Path) -> Vocabulary:
    """Read it; raises BadWeights as :func:`check_gguf` does. A file without one has no tokens."""
    model = ""
    texts: list[str] = []
    types: tuple[int, ...] = ()
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            _, entries = _counts(file)
            for _ in range(entries):
                key, kind = _string(file, size), struct.unpack("<I", _exactly(file, 4))[0]
                if key == "tokenizer.ggml.tokens" and kind == _ARRAY:
                    texts = [_string(file, size) for _ in range(_array(file, (_STRING,)))]
                elif key == "tokenizer.ggml.token_type" and kind == _ARRAY:
                    count = _array(file, (4, 5))  # unsigned or signed, 4 bytes each; all are small and positive
                    types = struct.unpack(f"<{count}i", _exactly(file, 4 * count))
                elif key == "tokenizer.ggml.model":
                    model = str(_value(file, kind, size))
                else:
                    _value(file, kind, size)
    except (OSError, struct.error, UnicodeDecodeError, EOFError) as error:
        raise BadWeights(f"{path} is not a sound GGUF file: {error}") from error
    return Vocabulary(model, tuple(zip(texts, types, strict=False)))


def special_tokens(path: Path) -> SpecialTokens:
    """Read them from the vocabulary; raises BadWeights as :func:`check_gguf` does."""
    return vocabulary(path).special


def check_gguf(path: Path) -> GgufHeader:
    """Read the head; raises BadWeights when the file is not a sound GGUF of version 2 or 3."""
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except (OSError, struct.error, UnicodeDecodeError, EOFError) as error:
        raise BadWeights(f"{path} is not a sound GGUF file: {error}") from error


def _counts(file: IO[bytes]) -> tuple[int, int]:
    """Numbers of tensors and of entries."""
    if file.read(4) != _MAGIC:
        raise BadWeights(f"{file.name} is not a GGUF file: only GGUF weights are loaded, never pickles")
    version, tensors, entries = struct.unpack("<IQQ", _exactly(file, 20))
    if version not in (2, 3):
        raise BadWeights(f"{file.name} is GGUF version {version}; 2 and 3 can be read")
    if not 0 < tensors <= _MOST_ENTRIES or entries > _MOST_ENTRIES:
        raise BadWeights(f"{file.name} claims {tensors} tensors and {entries} entries")
    return tensors, entries


def _array(file: IO[bytes], kinds: tuple[int, ...]) -> int:
    """The length of an array of one of these kinds, which follows."""
    inner, count = struct.unpack("<IQ", _exactly(file, 12))
    if inner not in kinds or count > _MOST_TOKENS:
        raise EOFError(f"a vocabulary of {count} values of type {inner}")
    return int(count)


def _read(file: IO[bytes], size: int) -> GgufHeader:
    tensors, entries = _counts(file)
    found: dict[str, Any] = {}
    for _ in range(entries):
        key = _string(file, size)
        value = _value(file, struct.unpack("<I", _exactly(file, 4))[0], size)
        if value is not None:
            found[key] = value
    architecture = str(found.get("general.architecture", ""))
    context = found.get(f"{architecture}.context_length", 0)
    return GgufHeader(
        name=str(found.get("general.name", "")),
        architecture=architecture,
        context=context if isinstance(context, int) else 0,
        tensors=tensors,
    )


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("it is cut short")
    return data


def _string(file: IO[bytes], size: int) -> str:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > min(_MOST_STRING, size):
        raise EOFError(f"a string of {length} bytes")
    return _exactly(file, length).decode()


def _value(file: IO[bytes], kind: int, size: int) -> Any:
    """The value, or None for arrays, which are skipped."""
    if kind in _SCALARS:
        form = _SCALARS[kind]
        return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]
    if kind == _STRING:
        return _string(file, size)
    if kind != _ARRAY:
        raise EOFError(f"a value of unknown type {kind}")
    inner, count = struct.unpack("<IQ", _exactly(file, 12))
    if inner in _SCALARS:
        width = struct.calcsize(_SCALARS[inner])
        if count * width > size:
            raise EOFError(f"an array of {count} values")
        file.seek(count * width, 1)
    elif inner == _STRING:
        if count > size // 8:
            raise EOFError(f"an array of {count} strings")
        for _ in range(count):
            (length,) = struct.unpack("<Q", _exactly(file, 8))
            if length > size:
                raise EOFError(f"a string of {length} bytes")
            file.seek(length, 1)
    else:
        raise EOFError("a nested array")
    return None
