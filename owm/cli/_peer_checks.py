"""What ``owm doctor`` asks the peer that runs here: its connections, its clock, who can dial it, its tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import trio

from owm.cli._checks import Finding
from owm.cli._local import read_peer_file
from owm.config import Effective, load_constitution
from owm.errors import ConfigError
from owm.hardware import Hardware, applied_tier, best_tier, classify, detect, ignored_override
from owm.records import TIERS

__all__ = ["override_warning", "peer_findings"]

_CONNECT_SECONDS: Final = 3.0
_MAX_SKEW_SECONDS: Final = 5.0
_TABLE: Final = "t1: 8 GB VRAM, 16 GB RAM, 50 Mbps; t2: 24, 64, 200; t3: 80, 256, 1000"


def override_warning(effective: Effective) -> str:
    """What to say of ``node.tier_override`` on this machine; empty where it is empty or does what it says."""
    override = effective.settings.node.tier_override
    return ignored_override(trio.run(detect), None, override) if override else ""


def peer_findings(effective: Effective) -> Iterator[Finding]:
    """The findings; without a running peer, what can be said of the machine."""
    hardware = trio.run(detect)
    status = None
    running = read_peer_file(effective.data_dir)
    if running is not None and running.health_url:
        try:
            response = httpx.get(f"{running.health_url}/local/status", timeout=_CONNECT_SECONDS)
            response.raise_for_status()
            status = response.json()
        except (httpx.HTTPError, ValueError) as error:
            detail = f"does not answer ({type(error).__name__})"
            yield Finding("running peer", "error", detail, "look into its log; restart it")
    yield from _hardware(effective, hardware, status)
    if status is not None:
        yield Finding("running peer", "ok", f"{status.get('connections', '?')} connections")
        yield from _clock(status)
        yield from _reachability(effective, status)


def _hardware(effective: Effective, hardware: Hardware, status: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The accelerators, and the tier that they make with memory and, once it is measured, bandwidth."""
    cards = ", ".join(f"{card.model} ({card.vram_mib} MiB)" for card in hardware.accelerators)
    worker = "worker" in effective.settings.node.roles
    if cards or not worker:
        yield Finding("accelerators", "ok", cards or "none")
    else:
        remedy = "install the card's driver, so that nvidia-smi or rocm-smi lists it; without one the CPU serves"
        yield Finding("accelerators", "warning", "none that nvidia-smi or rocm-smi lists", remedy)
    override = effective.settings.node.tier_override
    measured = float(status.get("bandwidth_mbps") or 0) if status is not None else 0.0
    warning = ignored_override(hardware, measured or None, override)
    if warning:
        yield Finding("tier_override", "warning", warning, "leave node.tier_override empty")
    tier = applied_tier(classify(hardware, measured) if measured else best_tier(hardware), override)
    said = f"{hardware.vram_mib} MiB VRAM, {hardware.ram_mib} MiB RAM"
    said += f", {measured:.0f} Mbps" if measured else ", bandwidth not measured yet"
    least = _least_tier(effective)
    if worker and TIERS.index(tier) < TIERS.index(least):
        detail = f"{tier} ({said}), but this network gives work from {least} on"
        yield Finding("tier", "error", detail, f"a better machine or line ({_TABLE}), or another network")
    elif worker and not measured and status is not None and tier != "t0":
        remedy = "wait a few minutes: a connected peer measures it; see network.measure_bandwidth"
        yield Finding("tier", "warning", f"t0 until bandwidth is measured, then up to {tier} ({said})", remedy)
    elif worker and tier == "t0":
        yield Finding("tier", "warning", f"t0, below Tier 1 ({said})", f"it serves all the same; {_TABLE}")
    else:
        yield Finding("tier", "ok", f"{tier}{'' if measured else ' at most'} ({said})")


def _least_tier(effective: Effective) -> str:
    try:
        return load_constitution(effective.settings.network.profile).min_tier
    except ConfigError:  # the check of the settings says so
        return "t0"


def _clock(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Against the clocks of peers, as the running peer has measured it."""
    skew = status.get("clock_skew_seconds")
    if not isinstance(skew, int | float):
        yield Finding("clock", "ok", "not compared yet: that takes the manifests of three peers")
    elif abs(skew) > _MAX_SKEW_SECONDS:
        remedy = "synchronise it, for instance with chrony or systemd-timesyncd"
        yield Finding("clock", "warning", f"{skew:+.1f} s from the peers'", remedy)
    else:
        yield Finding("clock", "ok", f"{skew:+.1f} s from the peers'")


def _reachability(effective: Effective, status: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether anybody else could open a connection to us."""
    network = effective.settings.network
    inbound, groups = status.get("inbound_connections") or 0, status.get("dialled_by_groups") or 0
    if inbound or groups:
        yield Finding("reachability", "ok", f"others have dialled this peer ({inbound} such connections now)")
        return
    if not status.get("connections"):
        detail = f"no connections: {status.get('joining') or 'not joined'}"
        yield Finding("reachability", "warning", detail, "check network.bootstrap and that this machine is online")
        return
    port = f"TCP port {network.listen_port}" if network.listen_port else "a fixed network.listen_port"
    remedy = f"let {port} through the firewall and the router, and set network.announce to the public address"
    yield Finding("reachability", "warning", "nobody has dialled this peer since it started", remedy)
