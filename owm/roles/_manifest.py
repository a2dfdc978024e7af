"""The capability manifest that every peer publishes (SRS-NODE-04)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from owm import __version__
from owm.config import Constitution, Settings
from owm.directory.bandwidth import BandwidthService
from owm.hardware import Hardware, applied_tier, classify
from owm.model import Engine
from owm.net import Network
from owm.records import CapabilityManifest

__all__ = ["Load", "ManifestSource"]


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker is."""

    slots: int = 0
    busy: int = 0
    queued: int = 0


@dataclass
class ManifestSource:
    """Says at any time what this peer is and can do; roles fill in their part."""

    settings: Settings
    constitution: Constitution
    network: Network
    hardware: Hardware
    bandwidth: BandwidthService
    nonce: bytes
    engine: Engine | None = None
    task_types: tuple[str, ...] = ()
    load: Callable[[], Load] = field(default=Load)
    log_head: Callable[[], tuple[int, bytes]] = field(default=lambda: (0, b""))

    @property
    def tier(self) -> str:
        """Detected, and lowered where the operator asked for it."""
        return applied_tier(classify(self.hardware, self.bandwidth.mbps), self.settings.node.tier_override)

    def manifest(self, sequence: int, roles: Sequence[str]) -> CapabilityManifest:
        """The manifest as of now, unsigned."""
        load = self.load()
        size, root = self.log_head()
        engine = self.engine
        serves = engine is not None and engine.statistics().ready  # while it is away, nothing is to be asked for
        return CapabilityManifest(
            sequence=sequence,
            roles=tuple(roles),
            tier=self.tier,
            addresses=self.network.addresses,
            nonce=self.nonce,
            software=f"owm/{__version__}",
            accelerators=self.hardware.accelerators,
            ram_mib=self.hardware.ram_mib,
            bandwidth_mbps=round(self.bandwidth.mbps, 1),
            task_types=self.task_types if serves else (),
            models=engine.models if engine is not None and serves else (),
            slots=load.slots if serves else 0,
            busy=load.busy,
            queued=load.queued,
            engine=engine.kind if engine else "",
            unaudited=engine is not None and engine.kind == "openai",
            log_size=size,
            log_root=root,
        )
