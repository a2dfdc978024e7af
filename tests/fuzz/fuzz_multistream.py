"""Fuzz target: both sides of multistream-select. ``python -m tests.fuzz.fuzz_multistream``."""

from __future__ import annotations

from owm.net._core_multistream import Listening, MultistreamError, Proposing


def fuzz_one(data: bytes) -> None:
    """Only MultistreamError may come out, and nobody agrees on what was not offered."""
    listening, proposing = Listening(lambda name: name == "/a/1"), Proposing(["/a/1", "/b/1"])
    proposing.begin()
    for side in (listening, proposing):
        try:
            for at in range(0, len(data), 16):
                side.receive(data[at : at + 16])
        except MultistreamError:
            pass
        assert side.selected in (None, "/a/1", "/b/1")


if __name__ == "__main__":
    from tests.fuzz import main

    main(fuzz_one)
