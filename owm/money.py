"""Amounts of money. Satoshis and millisatoshis are distinct types: mixing them is a type error."""

from __future__ import annotations

from typing import NewType

__all__ = ["Msat", "Sat", "msat_of", "whole_sats"]

Sat = NewType("Sat", int)
Msat = NewType("Msat", int)


def msat_of(amount: Sat) -> Msat:
    """The same amount in millisatoshis."""
    return Msat(int(amount) * 1000)


def whole_sats(amount: Msat) -> Sat:
    """The whole satoshis in an amount, rounded down."""
    return Sat(int(amount) // 1000)
