"""The parser of foreign model servers, on what hypothesis makes of JSON and of bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from owm.model._core_dialect import MOST_LINE, Chunk, EventData, parse_chunk
from owm.model.errors import EngineError
from tests.fuzz import fuzz_dialect

words = st.sampled_from(
    ["choices", "delta", "content", "finish_reason", "usage", "prompt_tokens", "completion_tokens", "error", "data",
     "id", "index", "embedding", "stop", "length", "word"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
bodies = values.map(lambda value: json.dumps(value).encode())
lines = st.one_of(
    bodies.map(lambda body: b"data: " + body), st.binary(max_size=40), st.just(b"data: [DONE]"), st.just(b"")
)
wires = st.one_of(bodies, st.lists(lines, max_size=6).map(b"\n".join), st.binary(max_size=200))


@settings(max_examples=500, deadline=None)
@given(st.binary(min_size=1, max_size=1), wires)
@example(b"\xff", b'{"data": [{"index": 0, "embedding": [1e300, 1e300]}, {"index": 1, "embedding": [1e-320]}]}')
@example(b"\xff", b'{"data": [{"index": 0, "embedding": [1e-320]}, {"index": 1, "embedding": [1e-320]}]}')
@example(b"\xff", b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n')
def test_nothing_but_an_engine_error_comes_out(step: bytes, wire: bytes) -> None:
    fuzz_dialect.fuzz_one(step + wire)


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), max_size=8), st.integers(1, 30))
def test_what_was_said_is_heard_however_it_is_cut(texts: list[str], step: int) -> None:
    chunks = [json.dumps({"choices": [{"delta": {"content": text}}]}).encode() for text in texts]
    wire = b"".join(b"data: " + chunk + b"\r\n\r\n: a comment\n" for chunk in chunks)
    events = EventData()
    found = [data for at in range(0, len(wire), step) for data in events.feed(wire[at : at + step])]
    assert [parse_chunk(data) for data in found] == [Chunk(texts=(text,)) for text in texts]


@pytest.mark.parametrize("step", [1 << 12, 1 << 16, 1 << 22])
def test_a_line_is_bounded_whether_it_ends_or_not(step: int) -> None:
    for end in (b"", b"\n"):
        events = EventData()
        wire = b"data: " + b"x" * (2 * MOST_LINE) + end
        with pytest.raises(EngineError):
            for at in range(0, len(wire), step):
                events.feed(wire[at : at + step])
        assert events.kept <= MOST_LINE
