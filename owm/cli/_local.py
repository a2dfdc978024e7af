"""Finding the peers that run on this machine, and asking them over their health port."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from owm.config import Effective
from owm.errors import TemporaryError

__all__ = ["DEVNET_FILE", "PEER_FILE", "PeerFile", "fetch", "find_gateway", "health_url", "local_key", "read_peer_file"]

PEER_FILE = "peer.json"  #: what a running peer writes into its data folder
KEY_FILE = "cli.key"  #: the API key that this machine's own command line uses
KEYS_FILE = "keys.sqlite"  #: the API keys of a gateway, in its data folder
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


def read_devnet(effective: Effective) -> list[tuple[Path, PeerFile]]:
    """The peers of the devnet that runs under this user, if any, with their data folders."""
    try:
        found = json.loads((effective.data_dir / DEVNET_FILE).read_text(encoding="utf-8"))
        folders = [Path(folder) for folder in found["data_dirs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [(folder, peer) for folder in folders if (peer := read_peer_file(folder)) is not None]


def health_url(effective: Effective) -> str:
    """Where the local peer's health server listens, as far as can be known."""
    peer = read_peer_file(effective.data_dir)
    if peer is not None and peer.health_url:
        return peer.health_url
    devnet = [peer.health_url for _, peer in read_devnet(effective) if peer.health_url]
    if devnet:
        return devnet[0]
    return f"http://127.0.0.1:{effective.settings.health.port}"


def find_gateway(effective: Effective) -> tuple[str, Path | None]:
    """The API to ask, and the data folder of the gateway if it runs here.

    That of the local peer, else of a running devnet, else the configured address.
    """
    own = read_peer_file(effective.data_dir)
    if own is not None and own.api_url:
        return own.api_url, effective.data_dir
    for folder, peer in read_devnet(effective):
        if peer.api_url:
            return peer.api_url, folder
    return f"http://127.0.0.1:{effective.settings.api.port}", None


def local_key(folder: Path) -> str:
    """The key with which this machine's own command line asks the gateway of a data folder; made when first needed.

    Whoever can write the folder is its operator, so this gives nobody a right that they lack. It has no daily limit.

    Raises:
        TemporaryError: the keys cannot be opened.
    """
    from owm.api.keys import KeyStore

    file = folder / KEY_FILE
    store = KeyStore(folder / KEYS_FILE)
    try:
        if file.exists():
            secret = file.read_text(encoding="ascii").strip()
            if store.find(secret) is not None:
                return secret
            file.unlink()
        made = store.add("owm on this machine", per_day=0)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(made.secret)
        return made.secret
    except (OSError, ValueError) as error:
        raise TemporaryError(f"the key of this machine in {file} cannot be used: {error}") from error
    finally:
        store.close()


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
