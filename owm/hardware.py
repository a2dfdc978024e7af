"""What this machine has: accelerators, memory, and the tier that they add up to (SRS-NODE-03, table 4.1.3).

Accelerators are probed with the vendors' own tools; nothing is claimed that was not read.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

import psutil
import structlog
import trio

from owm.records import TIERS, Accelerator

__all__ = [
    "TIER_TABLE",
    "Hardware",
    "TierMinimum",
    "applied_tier",
    "best_tier",
    "classify",
    "detect",
    "ignored_override",
    "memory_limits",
]

_log = structlog.get_logger(__name__)

_PROBE_SECONDS: Final = 10.0
_NVIDIA: Final = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_ROCM: Final = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")


@dataclass(frozen=True, slots=True)
class TierMinimum:
    """The least that a tier asks for."""

    tier: str
    vram_mib: int
    ram_mib: int
    bandwidth_mbps: float


# Machines sold with "16 GB" report a little less than 16 * 1024 MiB: firmware keeps some. 5 % is allowed.
TIER_TABLE: Final = (
    TierMinimum("t3", 80 * 1024, 256 * 1024, 1000.0),
    TierMinimum("t2", 24 * 1024, 64 * 1024, 200.0),
    TierMinimum("t1", 8 * 1024, 16 * 1024, 50.0),
)
_SLACK: Final = 0.95


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was found."""

    accelerators: tuple[Accelerator, ...]
    ram_mib: int
    nvidia: int = 0  #: how many of the accelerators are NVIDIA's; they come first, in the order of their PCI buses

    @property
    def vram_mib(self) -> int:
        """Of all accelerators together: a server of several cards counts as one machine."""
        return sum(card.vram_mib for card in self.accelerators)


def classify(hardware: Hardware, bandwidth_mbps: float) -> str:
    """The highest tier whose every minimum is met; ``t0`` below Tier 1."""
    for least in TIER_TABLE:
        if (
            hardware.vram_mib >= least.vram_mib * _SLACK
            and hardware.ram_mib >= least.ram_mib * _SLACK
            and bandwidth_mbps >= least.bandwidth_mbps
        ):
            return least.tier
    return "t0"


def applied_tier(detected: str, override: str) -> str:
    """The tier to advertise: an override may only lower what was detected."""
    if not override or TIERS.index(override) >= TIERS.index(detected):
        return detected
    return override


def best_tier(hardware: Hardware) -> str:
    """The tier that this machine has where its bandwidth is enough."""
    return classify(hardware, float("inf"))


def ignored_override(hardware: Hardware, bandwidth_mbps: float | None, override: str) -> str:
    """What to tell an operator whose override would raise the tier; empty where it does not.

    Args:
        bandwidth_mbps: None before any measurement: what the rest of the machine allows is then the measure.
    """
    detected = best_tier(hardware) if bandwidth_mbps is None else classify(hardware, bandwidth_mbps)
    if not override or TIERS.index(override) <= TIERS.index(detected):
        return ""
    found = f"{hardware.vram_mib} MiB VRAM, {hardware.ram_mib} MiB RAM"
    if bandwidth_mbps is not None:
        found += f", {bandwidth_mbps:.0f} Mbps"
    most = "" if bandwidth_mbps is not None else " at most"
    return (
        f'node.tier_override = "{override}" is ignored: an override can only lower the tier, and this machine '
        f"has {detected}{most} ({found})"
    )


def parse_nvidia_smi(text: str) -> tuple[Accelerator, ...]:
    """Read ``nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits``."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == 3 and row[1].strip().isdigit():
            found.append(Accelerator(row[0].strip(), int(row[1]), row[2].strip()))
    return tuple(found)


def parse_rocm_smi(text: str) -> tuple[Accelerator, ...]:
    """Read ``rocm-smi --showproductname --showmeminfo vram --showdriverversion --json``."""
    try:
        report = json.loads(text)
    except ValueError:
        return ()
    if not isinstance(report, dict):
        return ()
    system = report.get("system")
    driver = str(system.get("Driver version", "")) if isinstance(system, dict) else ""
    found = []
    for name, card in sorted(report.items()):
        if not name.startswith("card") or not isinstance(card, dict):
            continue
        memory = str(card.get("VRAM Total Memory (B)", ""))
        model = next((str(card[key]) for key in ("Card Series", "Card series", "Card model") if key in card), name)
        if memory.isdigit():
            found.append(Accelerator(model, int(memory) // 2**20, driver))
    return tuple(found)


async def _run(command: tuple[str, ...]) -> str:
    """The tool's output, or nothing when it is missing, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return ""
    with trio.move_on_after(_PROBE_SECONDS):
        try:
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            _log.warning("probe failed", tool=command[0], error=str(error))
            return ""
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    _log.warning("probe timed out", tool=command[0], seconds=_PROBE_SECONDS)
    return ""


async def detect() -> Hardware:
    """Probe this machine; a vendor's tool that is missing or broken means no such accelerator."""
    nvidia = parse_nvidia_smi(await _run(_NVIDIA))
    amd = parse_rocm_smi(await _run(_ROCM))
    return Hardware(nvidia + amd, int(psutil.virtual_memory().total) // 2**20, len(nvidia))


def memory_limits(hardware: Hardware, percent: int) -> dict[str, str]:
    """Environment variables that keep a process to ``percent`` of each NVIDIA card's memory (SRS-NODE-05).

    CUDA obeys them where the Multi-Process Service runs. Its share of the cards' compute units is left alone: a card
    that nobody else uses would stand idle.
    """
    limits = ",".join(
        f"{number}={card.vram_mib * percent // 100}M"
        for number, card in enumerate(hardware.accelerators[: hardware.nvidia])
    )
    # CUDA numbers the fastest card first unless it is told to; nvidia-smi goes by PCI bus.
    return {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": limits, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if limits else {}
