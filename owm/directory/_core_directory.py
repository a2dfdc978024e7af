"""The live view of the network, without clock or I/O: who is there, what they can do, and how they have done.

A manifest is fresh for its type's maximum age, counted from when *we* first saw that sequence number: the issuer's
clock plays no part. A peer is *discovered* by a fresh manifest, *connected* while a connection is up, and *usable*
when it is both fresh and willing to work; whoever misses three manifests in a row drops out by itself (lease expiry).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from owm.identity import PeerId
from owm.records import TIERS, CapabilityManifest, SignedRecord

__all__ = ["DirectoryCore", "DirectoryStatistics", "Noted", "Peer"]

LEASE: Final = CapabilityManifest.LIMITS.max_age or 180.0
_SMOOTHING: Final = 0.25
_FAILURE_PAUSE: Final = 2.0  # seconds after the first failure in a row, doubling
_LONGEST_PAUSE: Final = 60.0


@dataclass(slots=True)
class Peer:
    """What is known of one peer."""

    id: PeerId
    manifest: CapabilityManifest
    envelope: SignedRecord
    seen: float  #: monotonic seconds at which this sequence number arrived
    connected: bool = False
    latency: float | None = None  #: seconds to the first reply, smoothed; None before any
    failures: int = 0  #: in a row
    paused_until: float = field(default=float("-inf"))  #: not scheduled before


@dataclass(frozen=True, slots=True)
class Noted:
    """What a manifest changed."""

    new: bool = False  #: a peer that was unknown, or had expired
    updated: bool = False
    doppelganger: bool = False  #: another process runs with our key


@dataclass(frozen=True, slots=True)
class DirectoryStatistics:
    """The network as this peer sees it; only fresh manifests count."""

    discovered: int = 0
    connected: int = 0
    workers: int = 0
    gateways: int = 0
    slots: int = 0
    busy: int = 0
    by_tier: dict[str, int] = field(default_factory=dict)
    models: tuple[str, ...] = ()  #: ids of all served models
    doppelgangers: int = 0  #: manifests with our id and a foreign nonce


class DirectoryCore:
    """The view itself.

    Our own manifests are to be noted too: what another process signs with our key is told from what we signed before
    a restart by being newer than our first one.

    Args:
        own: our peer id.
        nonce: of this process, as in our own manifest.
        capacity: peers kept; the longest unheard go first.
    """

    def __init__(self, own: PeerId, nonce: bytes, salt: bytes, capacity: int = 20_000) -> None:
        self._own = own
        self._nonce = nonce
        self._salt = salt
        self._capacity = capacity
        self._peers: OrderedDict[PeerId, Peer] = OrderedDict()
        self._connected: set[PeerId] = set()
        self._by_task: dict[str, set[PeerId]] = {}
        self._since: int | None = None  # the number of this process's first manifest
        self.doppelgangers = 0

    def note(self, record: SignedRecord, now: float) -> Noted:
        """Take in a verified manifest. One that is not newer than what is known changes nothing."""
        manifest = record.record
        if not isinstance(manifest, CapabilityManifest):
            return Noted()
        if record.issuer == self._own:
            if manifest.nonce == self._nonce:
                self._since = record.sequence if self._since is None else min(self._since, record.sequence)
            # What is older than our first manifest may be our own, from before a restart.
            elif self._since is not None and record.sequence > self._since:
                self.doppelgangers += 1
                return Noted(doppelganger=True)
            return Noted()
        known = self._peers.get(record.issuer)
        if known is not None and manifest.sequence <= known.manifest.sequence:
            return Noted()
        new = known is None or not self._fresh(known, now)
        if known is None:
            self._peers[record.issuer] = Peer(
                record.issuer, manifest, record, now, connected=record.issuer in self._connected
            )
        else:
            self._unindex(known)
            if known.manifest.nonce != manifest.nonce:  # it was restarted: its failures are history
                known.failures, known.paused_until = 0, float("-inf")
            known.manifest, known.envelope, known.seen = manifest, record, now
        self._peers.move_to_end(record.issuer)
        for task_type in manifest.task_types:
            self._by_task.setdefault(task_type, set()).add(record.issuer)
        if len(self._peers) > self._capacity:
            _, oldest = self._peers.popitem(last=False)
            self._unindex(oldest)
        return Noted(new=new, updated=True)

    def expire(self, now: float) -> int:
        """Forget peers whose lease ended; returns how many."""
        gone = [peer for peer in self._peers.values() if not self._fresh(peer, now)]
        for peer in gone:
            self._unindex(peer)
            del self._peers[peer.id]
        return len(gone)

    def set_connected(self, peer: PeerId, connected: bool) -> None:
        (self._connected.add if connected else self._connected.discard)(peer)
        if known := self._peers.get(peer):
            known.connected = connected

    def succeeded(self, peer: PeerId, latency: float | None) -> None:
        """Our own measurement: it answered, the first output after ``latency`` seconds."""
        if known := self._peers.get(peer):
            known.failures, known.paused_until = 0, float("-inf")
            if latency is not None:
                old = known.latency
                known.latency = latency if old is None else old + _SMOOTHING * (latency - old)

    def failed(self, peer: PeerId, now: float) -> None:
        """It failed us: leave it alone for a while, longer each time in a row."""
        if known := self._peers.get(peer):
            known.failures += 1
            known.paused_until = now + min(_FAILURE_PAUSE * 2 ** min(known.failures - 1, 10), _LONGEST_PAUSE)

    def get(self, peer: PeerId, now: float) -> Peer | None:
        """A peer with a fresh manifest."""
        known = self._peers.get(peer)
        return known if known is not None and self._fresh(known, now) else None

    def peers(self, now: float) -> list[Peer]:
        """All with fresh manifests, the longest known first."""
        return [peer for peer in self._peers.values() if self._fresh(peer, now)]

    def eligible(self, task_type: str, model: str, min_tier: str, now: float, *, paused: bool = False) -> list[Peer]:
        """Usable workers for a task, in a stable order.

        Args:
            model: id that must be served; empty for any.
            min_tier: the lowest tier to take; ``t0`` takes all.
            paused: take those too that failed lately: better than nobody.
        """
        least = TIERS.index(min_tier)
        return [
            peer
            for peer in map(self._peers.__getitem__, sorted(self._by_task.get(task_type, ())))
            if self._fresh(peer, now)
            and peer.manifest.slots > 0
            and (paused or peer.paused_until <= now)
            and (not model or any(served.id == model for served in peer.manifest.models))
            and peer.manifest.tier in TIERS
            and TIERS.index(peer.manifest.tier) >= least
        ]

    def pseudonym(self, peer: PeerId) -> str:
        """A stable name for the public API that does not give the peer id away; other gateways use other names."""
        return hashlib.blake2b(peer, key=self._salt, digest_size=8, person=b"owm-pseudonym").hexdigest()

    def statistics(self, now: float) -> DirectoryStatistics:
        peers = self.peers(now)
        tiers: dict[str, int] = {}
        for peer in peers:
            tiers[peer.manifest.tier] = tiers.get(peer.manifest.tier, 0) + 1
        return DirectoryStatistics(
            discovered=len(peers),
            connected=sum(peer.connected for peer in peers),
            workers=sum("worker" in peer.manifest.roles for peer in peers),
            gateways=sum("gateway" in peer.manifest.roles for peer in peers),
            slots=sum(peer.manifest.slots for peer in peers),
            busy=sum(peer.manifest.busy for peer in peers),
            by_tier=tiers,
            models=tuple(sorted({served.id for peer in peers for served in peer.manifest.models})),
            doppelgangers=self.doppelgangers,
        )

    def _fresh(self, peer: Peer, now: float) -> bool:
        return now - peer.seen < LEASE

    def _unindex(self, peer: Peer) -> None:
        for task_type in peer.manifest.task_types:
            members = self._by_task.get(task_type)
            if members is not None:
                members.discard(peer.id)
                if not members:
                    del self._by_task[task_type]
