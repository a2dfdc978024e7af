"""Which tier this machine has: bandwidth is measured with other peers and remembered, and the operator is told."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import msgspec
import structlog
import trio

from owm.clock import Clock
from owm.directory.bandwidth import BandwidthSample
from owm.hardware import best_tier, ignored_override
from owm.identity import PeerId
from owm.roles._manifest import ManifestSource
from owm.store import Store
from owm.store.errors import StoreError

__all__ = ["TierWatch"]

_log = structlog.get_logger(__name__)

_SPACE: Final = "bandwidth"
_KEPT_SECONDS: Final = 30 * 86400.0  #: older measurements are forgotten at the next start
_FIRST_AFTER: Final = 20.0
_RETRY: Final = 60.0  #: until the first measurement
_SOON: Final = 600.0  #: until there are a few
_DAILY: Final = 86400.0
_FEW: Final = 3
_SAID_AFTER: Final = 5  #: attempts in vain after which the operator hears of it

_decode: Final = msgspec.msgpack.Decoder(BandwidthSample).decode


class TierWatch:
    """Measures until there is something to go by and then daily, keeps what was measured, and says what the tier is.

    Args:
        worker: whether this peer runs tasks, so that a low tier matters to its operator.
        on_change: called when the tier has changed.
    """

    def __init__(
        self,
        source: ManifestSource,
        store: Store,
        clock: Clock,
        random: Random,
        *,
        worker: bool,
        on_change: Callable[[], None],
    ) -> None:
        self._source = source
        self._bandwidth = source.bandwidth
        self._store = store
        self._clock = clock
        self._random = random
        self._worker = worker
        self._on_change = on_change
        self._said = ""
        self._warned = False

    async def load(self) -> None:
        """Take in what earlier runs measured, and say what can be said before anything is measured."""
        now = self._clock.time()
        known = []
        for key, data in await self._store.items(_SPACE):
            try:
                peer, sample = PeerId(key), _decode(data)
            except (msgspec.DecodeError, ValueError) as error:
                _log.warning("a stored measurement of bandwidth cannot be read", error=str(error))
                continue
            if now - sample.time <= _KEPT_SECONDS and sample.mbps >= 0:
                known.append((peer, sample))
        self._bandwidth.restore(known)
        self._check_override(None)
        if known:
            self._say()
        elif self._worker and best_tier(self._source.hardware) == "t0":
            self._say()  # no bandwidth would lift it
        elif self._worker and not self._source.settings.network.measure_bandwidth:
            _log.warning("the tier stays t0: bandwidth is part of it, and network.measure_bandwidth is off")
        elif self._worker:
            _log.info("the tier is t0 until bandwidth has been measured with another peer")

    async def run(self) -> None:
        """Measure until cancelled. Call it once the peer has joined."""
        await trio.sleep(_FIRST_AFTER)
        failures = 0
        while True:
            await self.measure()
            samples = len(self._bandwidth.samples)
            failures += not samples
            if failures == _SAID_AFTER and not samples and self._worker:
                _log.warning(
                    "bandwidth could not be measured yet, and without it the tier is t0",
                    connections=len(self._source.network.peers()),
                    remedy="nothing, if peers are few: it is tried every minute",
                )
            pause = _RETRY if not samples else _SOON if samples < _FEW else _DAILY
            await trio.sleep(pause * self._random.uniform(0.9, 1.1))

    async def measure(self) -> None:
        """Probe connected peers, those first with whom it is longest ago: several until three are known, then one."""
        before = self._source.tier
        samples = self._bandwidth.samples
        peers = list(self._source.network.peers())
        self._random.shuffle(peers)
        peers.sort(key=lambda peer: samples[peer].time if peer in samples else 0.0)
        wanted = max(1, _FEW - len(samples))
        measured = 0
        for peer in peers[: 2 * wanted]:
            if measured < wanted and await self._bandwidth.probe(peer) is not None:
                measured += 1
                await self._save()
        if measured:
            self._check_override(self._bandwidth.mbps)
            self._say()
        if self._source.tier != before:
            self._on_change()

    def _check_override(self, bandwidth_mbps: float | None) -> None:
        """Say once that an override which would raise the tier does nothing."""
        override = self._source.settings.node.tier_override
        warning = ignored_override(self._source.hardware, bandwidth_mbps, override)
        if warning and not self._warned:
            self._warned = True
            _log.warning(warning, remedy="leave node.tier_override empty")

    async def _save(self) -> None:
        kept = {bytes(peer): msgspec.msgpack.encode(sample) for peer, sample in self._bandwidth.samples.items()}
        try:
            await self._store.replace(_SPACE, kept)
        except StoreError as error:
            _log.warning("measurements of bandwidth could not be saved", error=str(error))

    def _say(self) -> None:
        """The tier, when it is news."""
        tier = self._source.tier
        if tier == self._said:
            return
        first, self._said = not self._said, tier
        hardware = self._source.hardware
        facts = {
            "vram_mib": hardware.vram_mib,
            "ram_mib": hardware.ram_mib,
            "bandwidth_mbps": round(self._bandwidth.mbps, 1),
        }
        least = self._source.constitution.min_tier
        if self._worker and tier == "t0":
            _log.warning(
                "this machine is below Tier 1 (8 GB VRAM, 16 GB RAM, 50 Mbps)",
                consequence="it serves all the same" if least == "t0" else f"this network requires {least}",
                **facts,
            )
        else:
            _log.info(
                "the tier of this machine" if first else "the tier of this machine has changed", tier=tier, **facts
            )
