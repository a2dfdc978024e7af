"""all-MiniLM-L6-v2 in NumPy: a BERT encoder of six layers, mean pooling, unit length (arXiv 1810.04805, 1908.10084).

Agrees with the reference to about 1e-7 and needs neither torch nor 400 MB.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from owm.model._jobs import Refusal

__all__ = ["MOST_TOKENS", "MiniLM", "read_safetensors"]

Array = NDArray[np.float32]

_LAYERS: Final = 6
_HEADS: Final = 12
_MAX_TOKENS: Final = 256
MOST_TOKENS: Final = 32_768  #: of the texts of one request: some 13 s of one CPU core, for others wait meanwhile
_MOST_HEADER: Final = 16 * 2**20


def read_safetensors(path: Path) -> dict[str, Array]:
    """Map the float32 tensors of a safetensors file without reading it; raises ValueError for a bad head.

    https://github.com/huggingface/safetensors#format
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise ValueError(f"{path} is not a safetensors file")
        header = json.loads(file.read(length))
    start = 8 + length
    data = np.memmap(path, dtype=np.uint8, mode="r")
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if not 0 <= first <= last <= size - start or last - first != 4 * math.prod(shape):
            raise ValueError(f"the tensor {name} lies outside {path}")
        found[name] = data[start + first : start + last].view(np.float32).reshape(shape)
    return found


def _erf(x: Array) -> Array:
    """The error function within 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    found: Array = np.sign(x) * (1.0 - poly * np.exp(-x * x))
    return found


def _gelu(x: Array) -> Array:
    found: Array = x * 0.5 * (1.0 + _erf(x * np.float32(1 / math.sqrt(2))))
    return found


class MiniLM:
    """The loaded model."""

    def __init__(self, weights: str, tokenizer: str) -> None:
        self._w = read_safetensors(Path(weights))
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    def _linear(self, x: Array, name: str) -> Array:
        found: Array = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return found

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        found: Array = centred / np.sqrt(variance + 1e-12) * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return found

    def _encode(self, ids: list[int]) -> Array:
        """One sentence's token ids to its unit vector of 384 dimensions."""
        w = self._w
        count = len(ids)
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:count]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        width = x.shape[1] // _HEADS
        for layer in range(_LAYERS):
            name = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(x, f"{name}.attention.self.{part}").reshape(count, _HEADS, width).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 2, 1) / math.sqrt(width)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ v
            mixed = mixed.transpose(1, 0, 2).reshape(count, -1)
            x = self._norm(
                x + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
            )
            inner = _gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        pooled = x.mean(0)
        found: Array = (pooled / np.linalg.norm(pooled)).astype(np.float32)
        return found

    def embed(self, texts: list[str], cancelled: Callable[[], bool] = lambda: False) -> tuple[list[Array], int]:
        """Unit vectors in the order of the texts, and the tokens that they took; long texts are cut at 256 tokens.

        Args:
            cancelled: looked at before each text; a text takes about a tenth of a second.

        Raises:
            Refusal: there are too many texts for one request, or it was cancelled.
        """
        encoded: list[list[int]] = []
        total = 0
        for text in texts:
            _go_on(cancelled)
            encoded.append(self._tokenizer.encode(text).ids)
            total += len(encoded[-1])
            if total > MOST_TOKENS:
                raise Refusal("too_long", f"the texts have more than {MOST_TOKENS} tokens: send fewer at once")
        vectors = []
        for ids in encoded:
            _go_on(cancelled)
            vectors.append(self._encode(ids))
        return vectors, total

    def answer(self, texts: list[str], cancelled: Callable[[], bool]) -> dict[str, Any]:
        """As a message for the peer: little-endian float32."""
        vectors, tokens = self.embed(texts, cancelled)
        return {"vectors": [vector.astype("<f4").tobytes() for vector in vectors], "tokens": tokens}


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Refusal("cancelled", "cancelled")
