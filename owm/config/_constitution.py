"""A network's constitution, ``network.toml``: what all its peers must agree on.

The id is the hash of name, genesis nonce and maintainer keys; it prefixes every protocol id and domain, so two
networks never mix. Everything else is a parameter.
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from owm.errors import ConfigError

__all__ = ["Constitution", "load_constitution"]


class DhtParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parameters of the DHT that peers of one network share."""

    server_puzzle_bits: Annotated[int, Meta(ge=0, le=32)] = 0  #: work for server mode; 0 switches it off
    require_dial_back: bool = True  #: client mode until peers of three groups have dialled back
    exempt_private_groups: bool = False  #: no subnet diversity among private and loopback addresses


class GossipParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parameters of gossip that peers of one network share."""

    colocation_weight: float = -10.0  #: score per peer beyond the threshold on one address; 0 in devnets


class Constitution(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One network. ``maintainers`` are hex Ed25519 keys."""

    name: Annotated[str, Meta(pattern="^[a-z0-9-]{1,32}$")]
    genesis_nonce: Annotated[str, Meta(min_length=1, max_length=64)]
    maintainers: tuple[str, ...] = ()
    stake_required: bool = False
    min_tier: str = "t0"  #: the lowest tier that may serve
    bitcoin_network: str = "regtest"
    manifest_interval: Annotated[float, Meta(gt=0)] = 60.0  #: seconds between manifests (SRS-NODE-04)
    placeholder: bool = False  #: shipped but not filled in: refuses to start
    dht: DhtParameters = msgspec.field(default_factory=DhtParameters)
    gossip: GossipParameters = msgspec.field(default_factory=GossipParameters)

    @property
    def id(self) -> str:
        """32 hex digits."""
        core = msgspec.msgpack.encode((self.name, self.genesis_nonce, sorted(self.maintainers)))
        return hashlib.sha256(b"owm-network:" + core).hexdigest()[:32]

    def protocol(self, name: str) -> str:
        """The protocol id of one of our protocols on this network, such as ``/owm/<id>/task/1``."""
        return f"/owm/{self.id}/{name}/1"

    def topic(self, name: str) -> str:
        """The name of a gossip topic on this network, such as ``/owm/<id>/manifest/0a``."""
        return f"/owm/{self.id}/{name}"


def load_constitution(profile: str) -> Constitution:
    """A shipped profile by name, or a ``network.toml`` by path.

    Raises:
        ConfigError: there is none, it is not valid, or it is a placeholder that nobody has filled in.
    """
    shipped = resources.files("owm.config") / "profiles" / f"{profile}.toml"
    path = Path(profile).expanduser()
    try:
        if "/" not in profile and shipped.is_file():
            text = shipped.read_text(encoding="utf-8")
        elif path.is_dir():
            text = (path / "network.toml").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"there is no network {profile!r}: name devnet, mainnet or the path of a network.toml"
        ) from error
    try:
        constitution = msgspec.convert(tomllib.loads(text), Constitution)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the network {profile!r} is not valid: {error}") from error
    if constitution.placeholder:
        raise ConfigError(
            f"the network {profile!r} is a placeholder until its maintainers fill it in: use devnet, or the path of a "
            "network.toml"
        )
    return constitution
