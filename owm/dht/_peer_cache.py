"""The peers of the last run, in a file: a restart must not depend on who answers first (D2, D14)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from owm.dht._core import KademliaCore
from owm.dht._core_types import Contact
from owm.identity import PeerId

__all__ = ["PeerCache", "load_peers", "save_peers"]

_log = structlog.get_logger(__name__)

_MAX_BYTES: Final = 1024 * 1024


class _Peer(msgspec.Struct, frozen=True):
    id: str
    addresses: tuple[str, ...]


class _File(msgspec.Struct, frozen=True):
    peers: tuple[_Peer, ...]


class PeerCache:
    """The file in which a core's peers outlive it; with no path, nothing is kept."""

    def __init__(self, core: KademliaCore, path: Path | None) -> None:
        self._core = core
        self._path = path

    async def load(self) -> None:
        """Have the core remember the peers of the last run."""
        if self._path is not None:
            self._core.remember(await trio.to_thread.run_sync(load_peers, self._path))

    async def save(self) -> None:
        """Write the peers of now, if there are any: whoever is cut off keeps those that it knew."""
        peers = self._core.export_peers() if self._path is not None else ()
        if self._path is None or not peers:
            return
        try:
            await trio.to_thread.run_sync(save_peers, self._path, peers)
        except OSError as error:
            _log.warning("cannot save the known peers", path=str(self._path), error=str(error))


def load_peers(path: Path, limit: int = 256) -> list[Contact]:
    """The peers in the file; none when it is missing or damaged, for a cache may be lost."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        peers = msgspec.json.decode(data, type=_File).peers if len(data) <= _MAX_BYTES else ()
    except (OSError, msgspec.DecodeError):
        return []
    contacts = []
    for peer in peers[:limit]:
        try:
            contacts.append(Contact(bytes(PeerId.parse(peer.id)), peer.addresses[:16]))
        except ValueError:
            continue
    return contacts


def save_peers(path: Path, contacts: Sequence[Contact]) -> None:
    """Replace the file at once, so that a crash leaves the old or the new one; raises OSError."""
    peers = tuple(_Peer(str(PeerId(contact.id)), contact.addresses) for contact in contacts)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(msgspec.json.encode(_File(peers)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
