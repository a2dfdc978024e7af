"""One file over HTTP, kept while it is incomplete and taken up again where it broke off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import httpx

from owm.errors import TemporaryError
from owm.model.errors import BadWeights

__all__ = ["NotOffered", "fetch"]

_TRIES: Final = 5  #: in a row in which nothing came
_SECONDS: Final = 30.0  #: without a byte


class NotOffered(TemporaryError):
    """The server does not give us the file: another way may."""


def fetch(
    client: httpx.Client, url: str, sha256: str, part: Path, most: int, told: Callable[[int, int], None] | None = None
) -> None:
    """Bring a file to ``part``; what is there already is not asked for again. The whole is checked by its hash.

    Args:
        client: with the proxy and the certificates to use.
        most: bytes beyond which the file is refused.
        told: called with the bytes here and the bytes in all.

    Raises:
        NotOffered: nothing came at all.
        TemporaryError: it broke off; ``part`` holds what came, and the next call goes on from there.
        BadWeights: it is too large or has another hash; ``part`` is gone.
    """
    tries, failure = 0, ""
    while tries < _TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            _more(client, url, part, most, told)
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__}: {error}".rstrip(": ")
            here = part.stat().st_size if part.exists() else 0
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise NotOffered(f"{url}: {failure}") from error
            if not here:
                raise NotOffered(f"{url}: {failure}") from error
            tries = tries + 1 if here == before else 1
            continue
        except BadWeights:
            part.unlink(missing_ok=True)
            raise
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise BadWeights(f"{url} arrived with the wrong SHA-256 ({found[:12]}..., expected {sha256[:12]}...)")
        return
    raise TemporaryError(f"{url} broke off ({failure}): run the command again, it goes on from there")


def _more(client: httpx.Client, url: str, part: Path, most: int, told: Callable[[int, int], None] | None) -> None:
    """Ask for what is missing, and append it."""
    here = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={here}-"} if here else {})}
    with client.stream("GET", url, headers=headers, timeout=_SECONDS, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and here:
            return  # there is nothing beyond what is here: the hash decides
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            here = 0
        length = response.headers.get("Content-Length", "")
        total = here + int(length) if length.isdigit() else 0
        if max(total, here) > most:
            raise BadWeights(f"{url} has {total} bytes, more than the {most} that it can be")
        with part.open("ab" if here else "wb") as out:
            _append(response, out, here, total, most, told)
            out.flush()
            os.fsync(out.fileno())


def _append(
    response: httpx.Response, out: IO[bytes], here: int, total: int, most: int, told: Callable[[int, int], None] | None
) -> None:
    for block in response.iter_raw():
        here += len(block)
        if here > most:
            raise BadWeights(f"{response.url} sends more than the {most} bytes that it can be")
        out.write(block)
        out.flush()  # a process that is killed leaves all that came
        if told is not None:
            told(here, max(total, here))
