"""Fuzz target: a model server's answer in OpenAI's dialect, cut anywhere. ``python -m tests.fuzz.fuzz_dialect``."""

from __future__ import annotations

from contextlib import suppress

from owm.model._core_dialect import MOST_LINE, EventData, parse_chunk, parse_models, parse_vectors
from owm.model.errors import EngineError


def fuzz_one(data: bytes) -> None:
    """The first byte says in which pieces the rest arrives. Only EngineError may come out; what is kept is bounded."""
    if not data:
        return
    step, wire = data[0] + 1, data[1:]
    events, found = EventData(), list[bytes]()
    try:
        for at in range(0, len(wire), step):
            found += events.feed(wire[at : at + step])
            assert events.kept <= MOST_LINE
    except EngineError:
        pass
    for event in found:
        assert b"\n" not in event
        try:
            chunk = parse_chunk(event)
        except EngineError:
            continue
        assert all(text and text.encode() for text in chunk.texts)
        assert chunk.finish in ("", "stop", "length")
        assert all(count is None or 0 <= count <= 2**31 for count in (chunk.prompt_tokens, chunk.completion_tokens))
    with suppress(EngineError):
        assert all(isinstance(name, str) for name in parse_models(wire))
    try:
        vectors, tokens = parse_vectors(wire, 2)
    except EngineError:
        return
    assert len(vectors) == 2 and tokens >= 0
    assert all(abs(sum(value * value for value in vector) - 1) < 1e-6 for vector in vectors)


if __name__ == "__main__":
    from tests.fuzz import main

    main(fuzz_one)
