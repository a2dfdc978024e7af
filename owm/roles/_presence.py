"""Being seen: publish the manifest, and provide the keys under which others look for our roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

import structlog
import trio

from owm.dht import Dht
from owm.identity import Identity
from owm.records import SignedRecord, sign_record
from owm.roles._manifest import ManifestSource

__all__ = ["Presence", "role_key"]

_log = structlog.get_logger(__name__)

_SOON: Final = 1.0  #: seconds until a change is published, so that a burst of changes is one manifest
_UNHEARD: Final = 5.0  #: seconds until the next attempt when nobody was there to take the manifest


def role_key(role: str, tier: str, shard: int) -> bytes:
    """The DHT key that providers of a role and tier register under; 256 shards by peer id spread the load."""
    return f"role:{role}:{tier}:{shard:02x}".encode()


class Presence:
    """Publishes this peer's manifest at the network's interval, and soon after something important changed.

    Args:
        next_sequence: persists and returns the next sequence number of our manifests.
        publish: sends the signed manifest to its topic; returns how many peers took it.
    """

    def __init__(
        self,
        identity: Identity,
        source: ManifestSource,
        roles: Sequence[str],
        dht: Dht,
        next_sequence: Callable[[], Awaitable[int]],
        publish: Callable[[SignedRecord], Awaitable[int]],
        random: Random,
    ) -> None:
        self._identity = identity
        self._source = source
        self._roles = tuple(roles)
        self._dht = dht
        self._next_sequence = next_sequence
        self._publish = publish
        self._random = random
        self._changed = trio.Event()
        self._offers_changed = trio.Event()
        self._published = trio.Event()
        self.latest: SignedRecord | None = None

    def changed(self) -> None:
        """What we offer has changed: publish within a second instead of within a minute, and provide other keys."""
        self._changed.set()
        self._offers_changed.set()

    async def wait_published(self) -> None:
        await self._published.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        interval = self._source.constitution.manifest_interval
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._provide)
            while True:
                self._changed = trio.Event()
                manifest = self._source.manifest(await self._next_sequence(), self._roles)
                self.latest = sign_record(self._identity, manifest, self._source.constitution.id)
                reached = await self._publish(self.latest)
                _log.debug("published our manifest", sequence=manifest.sequence, reached=reached)
                self._published.set()
                # A tenth of jitter, so that peers that started together do not publish together for ever.
                wait = interval if reached else min(interval, _UNHEARD)
                with trio.move_on_after(wait * self._random.uniform(0.9, 1.0)):
                    await self._changed.wait()
                    await trio.sleep(_SOON)

    async def _provide(self) -> None:
        """Keep our roles, task types and models registered in the DHT, which re-provides them."""
        held: set[bytes] = set()
        while True:
            self._offers_changed = trio.Event()
            wanted = self._keys()
            for key in held.difference(wanted):
                await self._dht.unprovide(key)
                _log.debug("no longer provided", key=key.decode())
            for key in wanted:
                if key not in held:
                    taken = await self._dht.provide(key)
                    _log.debug("provided", key=key.decode(), taken=taken)
            held = set(wanted)
            await self._offers_changed.wait()

    def _keys(self) -> list[bytes]:
        shard = self._identity.public_key[-1]
        keys = [role_key(role, self._source.tier, shard) for role in self._roles]
        keys += [f"task:{kind}".encode() for kind in self._source.task_types]
        if self._source.engine is not None:
            keys += [f"model:{model.sha256}".encode() for model in self._source.engine.models]
        return keys
