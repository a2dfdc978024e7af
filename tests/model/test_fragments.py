"""Characters of several tokens, of which the engine names only the last."""

from __future__ import annotations

from owm.model._core_fragments import UNKNOWN, Fragments, byte_tokens

GRIN = "😀".encode()  # f0 9f 98 80


def test_the_tokens_before_the_last_follow_from_the_bytes() -> None:
    parts = Fragments({1: GRIN[:1], 2: GRIN[1:2], 3: GRIN[2:3], 4: GRIN[3:], 5: GRIN[:2], 6: b" " + GRIN[:1]})
    assert parts.before(GRIN, 4, 3) == [1, 2, 3]
    assert parts.before(GRIN, 4, 2) == [5, 3]
    assert parts.before(b" " + GRIN, 4, 3) == [6, 2, 3]


def test_what_can_be_spelt_in_two_ways_or_in_none_is_unknown() -> None:
    parts = Fragments({1: GRIN[:1], 2: GRIN[1:3], 3: GRIN[:2], 4: GRIN[2:3], 5: GRIN[3:]})
    assert parts.before(GRIN, 5, 2) == [UNKNOWN] * 2  # 1 2 or 3 4
    assert parts.before(GRIN, 5, 1) == [UNKNOWN]
    assert parts.before(GRIN, 77, 3) == [UNKNOWN] * 3
    assert parts.before("é".encode(), 5, 1) == [UNKNOWN]
    assert parts.before(b"x" * 10_000 + GRIN, 5, 2) == [UNKNOWN] * 2


def test_vocabularies_are_read_in_both_ways_of_writing_bytes() -> None:
    assert byte_tokens("gpt2", [("a", 1), ("ðŁ", 1), ("ĠðŁ", 1), ("ðŁ", 3), ("Ġ", 1), ("日", 1)]) == {
        1: b"\xf0\x9f",
        2: b" \xf0\x9f",
    }
    assert byte_tokens("llama", [("<0xF0>", 6), ("<0x41>", 6), ("▁the", 1), ("<0xF0>", 1)]) == {0: b"\xf0"}
