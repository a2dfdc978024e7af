"""Accelerators are read from the vendors' tools, and tiers follow the table (SRS-NODE-03)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.hardware import Hardware, applied_tier, classify, detect, memory_limits, parse_nvidia_smi, parse_rocm_smi
from owm.records import TIERS, Accelerator

ROCM = (
    '{"card0": {"VRAM Total Memory (B)": "25753026560", "Card Series": "Radeon RX 7900 XTX"},'
    ' "card1": {"VRAM Total Memory (B)": "N/A"}, "system": {"Driver version": "6.3.6"}}'
)


def machine(vram_gib: float, ram_gib: float) -> Hardware:
    return Hardware((Accelerator("card", int(vram_gib * 1024), "1"),), int(ram_gib * 1024))


def test_nvidia_cards_are_read_with_their_memory_and_driver() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA GeForce RTX 4090, 24564, 550.54.15\n"
    assert parse_nvidia_smi(text) == (
        Accelerator("NVIDIA H100 80GB HBM3", 81559, "550.54.15"),
        Accelerator("NVIDIA GeForce RTX 4090", 24564, "550.54.15"),
    )


def test_amd_cards_are_read_and_one_without_memory_is_left_out() -> None:
    assert parse_rocm_smi(ROCM) == (Accelerator("Radeon RX 7900 XTX", 24560, "6.3.6"),)


def test_the_engine_gets_its_share_of_every_nvidia_card() -> None:
    """SRS-NODE-05."""
    cards = (Accelerator("H100", 81559, "1"), Accelerator("T4", 15360, "1"), Accelerator("Radeon", 24560, "6"))
    found = memory_limits(Hardware(cards, 64_000, nvidia=2), 80)
    assert found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=65247M,1=12288M"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert memory_limits(Hardware(cards[2:], 64_000), 80) == memory_limits(Hardware((), 64_000), 80) == {}


@given(st.text())
def test_no_output_of_a_broken_tool_crashes_the_probe(text: str) -> None:
    assert all(card.vram_mib >= 0 for card in parse_nvidia_smi(text) + parse_rocm_smi(text))


@pytest.mark.parametrize(
    ("vram", "ram", "bandwidth", "tier"),
    [
        (80, 256, 1000, "t3"),
        (79.6, 251, 1000, "t3"),  # sold as 80 and 256 GB
        (80, 256, 999, "t2"),
        (24, 64, 200, "t2"),
        (24, 32, 200, "t1"),
        (8, 16, 50, "t1"),
        (8, 16, 49, "t0"),
        (0, 512, 10_000, "t0"),
    ],
)
def test_a_tier_needs_all_of_its_minimums(vram: float, ram: float, bandwidth: float, tier: str) -> None:
    assert classify(machine(vram, ram), bandwidth) == tier


@given(st.sampled_from(TIERS), st.sampled_from(("", *TIERS)))
def test_an_override_only_ever_lowers_the_tier(detected: str, override: str) -> None:
    applied = applied_tier(detected, override)
    assert TIERS.index(applied) <= TIERS.index(detected)
    assert applied in (detected, override)


async def test_a_tool_on_the_path_is_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Test Card, 8192, 1.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = await detect()
    assert found.accelerators[0] == Accelerator("Test Card", 8192, "1.0")
    assert found.ram_mib > 0


async def test_a_failing_tool_means_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/bin")
    assert (await detect()).accelerators == ()
