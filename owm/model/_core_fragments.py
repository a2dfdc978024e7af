"""Which tokens a character was made of, where the engine names only the last of them.

llama.cpp sends a piece of text once its last character is whole. Characters outside a vocabulary take two to four
tokens of single bytes; of those the engine tells how many they were and the last one's id. The others follow from the
bytes of the text, unless the vocabulary allows more than one way to spell them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["UNKNOWN", "Fragments", "byte_tokens"]

UNKNOWN: Final = -1
_MOST_BYTES: Final = 64  # of the text before the last token; longer ones were held back for other reasons


def byte_tokens(model: str, tokens: Iterable[tuple[str, int]]) -> dict[int, bytes]:
    """The tokens that hold parts of characters, with their bytes.

    Args:
        model: how the vocabulary writes bytes: "gpt2" (a letter for each) or another one (``<0xF0>``).
        tokens: text and GGUF token type, in the order of their ids.
    """
    letters = _letters() if model == "gpt2" else None
    found = {}
    for number, (text, kind) in enumerate(tokens):
        raw = b""
        if letters is not None and kind == 1:
            raw = bytes(letters[letter] for letter in text if letter in letters)
            raw = raw if len(raw) == len(text) else b""
        elif kind == 6 and len(text) == 6 and text.startswith("<0x"):
            raw = bytes.fromhex(text[3:5])
        if raw and not _is_text(raw):
            found[number] = raw
    return found


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _letters() -> dict[str, int]:
    """GPT-2's letter of each byte: itself where it can be seen, else the next free one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


class Fragments:
    """Finds the tokens before the last one of a piece."""

    def __init__(self, tokens: dict[int, bytes]) -> None:
        self._bytes = tokens
        self._ids: dict[bytes, list[int]] = {}
        for number, raw in tokens.items():
            self._ids.setdefault(raw, []).append(number)

    def before(self, raw: bytes, last: int, count: int) -> list[int]:
        """The ids of the ``count`` tokens before ``last`` in a piece of these bytes; UNKNOWN unless certain."""
        tail = self._bytes.get(last)
        if tail is None or len(raw) > _MOST_BYTES or not raw.endswith(tail):
            return [UNKNOWN] * count
        ways = self._ways(raw[: len(raw) - len(tail)], count)
        return ways[0] if len(ways) == 1 else [UNKNOWN] * count

    def _ways(self, raw: bytes, count: int) -> list[list[int]]:
        """Up to two ways to spell ``raw`` with ``count`` tokens."""
        if count == 0:
            return [] if raw else [[]]
        found: list[list[int]] = []
        for size in range(1, len(raw) - count + 2):
            for number in self._ids.get(raw[:size], ()):
                found += [[number, *rest] for rest in self._ways(raw[size:], count - 1)]
                if len(found) > 1:
                    return found[:2]
        return found
