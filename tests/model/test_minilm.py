"""MiniLM in NumPy agrees with an independent reference: the same encoder in float64, written from the paper."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from owm.config import ModelSettings, expand
from owm.model import SHIPPED, ModelCache
from owm.model._minilm import MiniLM, read_safetensors

pytestmark = pytest.mark.slow

TEXTS = (
    "This is an example sentence",
    "Each sentence is converted",
    "",
    "ÄÖÜ and 漢字, emoji 🙂 and  double  spaces",
    "The quick brown fox jumps over the lazy dog. " * 40,
)


@pytest.fixture(scope="module")
def folder() -> Path:
    cache = ModelCache(expand(ModelSettings().model_cache_dir))
    card = SHIPPED["all-minilm-l6-v2"]
    cache.pull(card)
    return cache.folder / card.id


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """BERT (arXiv 1810.04805) for one sentence, token by token and head by head, in float64 with the exact GELU."""

    def tensor(name: str) -> np.ndarray:
        return weights[name].astype(np.float64)

    def dense(row: np.ndarray, name: str) -> np.ndarray:
        return tensor(f"{name}.weight") @ row + tensor(f"{name}.bias")

    def norm(row: np.ndarray, name: str) -> np.ndarray:
        scaled = (row - np.mean(row)) / math.sqrt(np.var(row) + 1e-12)
        return scaled * tensor(f"{name}.weight") + tensor(f"{name}.bias")

    rows = [
        norm(
            tensor("embeddings.word_embeddings.weight")[id_]
            + tensor("embeddings.position_embeddings.weight")[place]
            + tensor("embeddings.token_type_embeddings.weight")[0],
            "embeddings.LayerNorm",
        )
        for place, id_ in enumerate(ids)
    ]
    for number in range(6):
        layer = f"encoder.layer.{number}"
        queries, keys, values = (
            [dense(row, f"{layer}.attention.self.{part}") for row in rows] for part in ("query", "key", "value")
        )
        after = []
        for place, row in enumerate(rows):
            heads = []
            for head in range(12):
                part = slice(32 * head, 32 * head + 32)
                weighed = np.array([queries[place][part] @ key[part] / math.sqrt(32) for key in keys])
                shares = np.exp(weighed - weighed.max())
                shares /= shares.sum()
                heads.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
            mixed = dense(np.concatenate(heads), f"{layer}.attention.output.dense")
            row = norm(row + mixed, f"{layer}.attention.output.LayerNorm")
            inner = dense(row, f"{layer}.intermediate.dense")
            inner = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in inner])
            after.append(norm(row + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm"))
        rows = after
    pooled = np.mean(rows, axis=0)
    return pooled / math.sqrt(pooled @ pooled)


def test_vectors_agree_with_the_reference_to_a_millionth(folder: Path) -> None:
    model = MiniLM(str(folder / "model.safetensors"), str(folder / "tokenizer.json"))
    weights = read_safetensors(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    texts = list(TEXTS[:4])
    vectors, tokens = model.embed(texts)
    ids = [tokenizer.encode(text).ids for text in texts]
    assert tokens == sum(map(len, ids))
    for vector, wanted in zip(vectors, (reference(weights, found) for found in ids), strict=True):
        assert vector.dtype == np.float32 and vector.shape == (384,)
        assert float(np.abs(vector - wanted).max()) < 1e-6


def test_what_the_models_authors_published_comes_out(folder: Path) -> None:
    """The first numbers of the model card's own example (sentence-transformers/all-MiniLM-L6-v2)."""
    model = MiniLM(str(folder / "model.safetensors"), str(folder / "tokenizer.json"))
    (first, second), _ = model.embed(list(TEXTS[:2]))
    assert first[:3] == pytest.approx([0.0676569, 0.0634960, 0.0487131], abs=1e-5)
    assert second[:3] == pytest.approx([0.0864386, 0.1027626, 0.0053946], abs=1e-5)


def test_long_texts_are_cut_at_256_tokens(folder: Path) -> None:
    model = MiniLM(str(folder / "model.safetensors"), str(folder / "tokenizer.json"))
    (vector,), tokens = model.embed([TEXTS[4]])
    assert tokens == 256
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_safetensors(bad)
    head = b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 64]}}'
    bad.write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    with pytest.raises(ValueError, match="outside"):
        read_safetensors(bad)
