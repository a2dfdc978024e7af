"""Finding the peers that run on this machine, and asking them over their health port."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from owm.config import Effective
from owm.errors import TemporaryError

__all__ = ["DEVNET_FILE", "PEER_FILE", "PeerFile", "fetch", "gateway_url", "health_url", "read_peer_file"]

PEER_FILE = "peer.json"  #: what a running peer writes into its data folder
DEVNET_FILE = "devnet.json"  #: what a running devnet writes into the default data folder


@dataclass(frozen=True)
class PeerFile:
    """What a running peer says of itself."""

    peer_id: str
    pid: int
    addresses: tuple[str, ...] = ()
    api_url: str = ""
    health_url: str = ""
    roles: tuple[str, ...] = field(default=())

    @property
    def alive(self) -> bool:
        """Whether a process with that id exists."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def read_peer_file(folder: Path) -> PeerFile | None:
    """The peer that runs on a data folder; None when none does."""
    try:
        found: dict[str, Any] = json.loads((folder / PEER_FILE).read_text(encoding="utf-8"))
        peer = PeerFile(
            peer_id=str(found["peer_id"]),
            pid=int(found["pid"]),
            addresses=tuple(found.get("addresses") or ()),
            api_url=found.get("api_url") or "",
            health_url=found.get("health_url") or "",
            roles=tuple(found.get("roles") or ()),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return peer if peer.alive else None


def read_devnet(effective: Effective) -> list[PeerFile]:
    """The peers of the devnet that runs under this user, if any."""
    try:
        found = json.loads((effective.data_dir / DEVNET_FILE).read_text(encoding="utf-8"))
        folders = [Path(folder) for folder in found["data_dirs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [peer for folder in folders if (peer := read_peer_file(folder)) is not None]


def health_url(effective: Effective) -> str:
    """Where the local peer's health server listens, as far as can be known."""
    peer = read_peer_file(effective.data_dir)
    if peer is not None and peer.health_url:
        return peer.health_url
    devnet = [peer.health_url for peer in read_devnet(effective) if peer.health_url]
    if devnet:
        return devnet[0]
    return f"http://127.0.0.1:{effective.settings.health.port}"


def gateway_url(effective: Effective) -> str:
    """The API to ask: the local peer's, else a running devnet's, else the configured address."""
    for peer in (read_peer_file(effective.data_dir), *read_devnet(effective)):
        if peer is not None and peer.api_url:
            return peer.api_url
    return f"http://127.0.0.1:{effective.settings.api.port}"


def fetch(effective: Effective, view: str, **query: object) -> Any:
    """One of the local peer's views, such as ``status``.

    Raises:
        TemporaryError: no peer runs here, or it does not answer.
    """
    import httpx

    base = health_url(effective)
    try:
        response = httpx.get(f"{base}/local/{view}", params={k: str(v) for k, v in query.items()}, timeout=5)
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise TemporaryError(
            f"no peer answers at {base} ({type(error).__name__}): start one with `owm peer` or `owm devnet`, or name "
            "its folder with --data-dir"
        ) from error
