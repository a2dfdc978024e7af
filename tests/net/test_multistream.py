"""multistream-select: both sides agree, however the bytes are cut, and nonsense ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owm.net._core_multistream import MAX_MESSAGE, Listening, MultistreamError, Proposing, encode

names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=200).map(lambda name: "/" + name)
HEADER = encode("/multistream/1.0.0")


def negotiate(proposing: Proposing, listening: Listening, cut: int = 1000) -> None:
    ask = proposing.begin()
    while ask:
        answer = b"".join(listening.receive(ask[at : at + cut]) for at in range(0, len(ask), cut))
        ask = b"".join(proposing.receive(answer[at : at + cut]) for at in range(0, len(answer), cut))


@given(st.lists(names, min_size=1, max_size=8, unique=True), st.sets(names, max_size=4), st.data(), st.integers(1, 50))
def test_the_first_proposal_that_the_other_speaks_is_agreed_on(
    proposals: list[str], spoken: set[str], data: st.DataObject, cut: int
) -> None:
    spoken |= set(data.draw(st.lists(st.sampled_from(proposals), max_size=3)))
    proposing, listening = Proposing(proposals), Listening(spoken.__contains__)
    negotiate(proposing, listening, cut)
    expected = next((name for name in proposals if name in spoken), None)
    assert proposing.selected == listening.selected == expected
    assert proposing.refused is (expected is None)


def test_bytes_after_the_agreement_belong_to_the_protocol() -> None:
    listening = Listening(lambda name: name == "/a/1")
    listening.receive(HEADER + encode("/a/1") + b"payload")
    assert listening.rest == b"payload"
    proposing = Proposing(["/a/1"])
    proposing.begin()
    proposing.receive(HEADER + encode("/a/1") + b"answer")
    assert proposing.rest == b"answer"


@pytest.mark.parametrize(
    "wire",
    [
        b"\xff\xff\xff\xff\x0f",
        encode("/something/else"),
        b"\x00",
        b"\x02ab",
        b"\x80\x00",
        b"\x02\xff\n",
        HEADER + b"\x81\x10",
        HEADER + encode("/no") * 32,
    ],
    ids=[
        "4 GB",
        "no greeting",
        "empty",
        "no line feed",
        "padded length",
        "not text",
        "above the cap",
        "endless asking",
    ],
)
def test_nonsense_ends_the_negotiation(wire: bytes) -> None:
    with pytest.raises(MultistreamError):
        Listening(lambda name: False).receive(wire)


def test_an_answer_to_another_question_is_refused() -> None:
    proposing = Proposing(["/a/1"])
    proposing.begin()
    with pytest.raises(MultistreamError):
        proposing.receive(HEADER + encode("/b/1"))


@given(st.text(max_size=300))
def test_every_name_that_fits_is_encoded_so_that_it_decodes(name: str) -> None:
    heard: list[str] = []
    listening = Listening(lambda asked: heard.append(asked) is None)
    listening.receive(HEADER + encode(name))
    assert heard == [name]


def test_names_above_the_cap_are_not_sent() -> None:
    with pytest.raises(ValueError, match="bytes"):
        encode("x" * MAX_MESSAGE)
