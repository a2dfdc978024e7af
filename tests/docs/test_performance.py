"""Results of benchmarks, as programs read them and as the page shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import _report
from benchmarks._report import Result
from scripts import performance

RESULTS = (
    Result("latency", "ms", 12.5, goal=20.0),
    Result("CPU", "us", 30.0, 100.0, "the other", 0.25),
    Result("rate", "1/s", 5.0, goal=10.0, relation=">="),
    Result("size", "B", 7.0),
)


def test_a_goal_is_a_number_beside_its_relation() -> None:
    found = [json.loads(json.dumps(result.as_json())) for result in RESULTS]
    assert [(r["goal"], r["relation"], r["met"]) for r in found] == [
        (20.0, "<=", True),
        (0.25, "<=", False),  # of the ratio, 0.3
        (10.0, ">=", False),
        (None, None, None),
    ]


def test_what_is_saved_is_a_table_of_ours_and_the_other_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    _report.save("speed", [result.as_json() for result in RESULTS], "python -m benchmarks.speed")
    page = performance.render()
    assert "| what | ours | the other's | ratio | goal | met |" in page
    assert "| latency | 12.5 ms | - | - | <= 20 | yes |" in page
    assert "| CPU | 30 us | 100 us the other | 0.3 | <= 0.25 | **no** |" in page
    assert "| rate | 5 1/s | - | - | >= 10 | **no** |" in page
    assert "| size | 7 B | - | - | - | - |" in page


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("<= 50", "| x | 5 ms | - | - | <= 50 | yes |"),
        (">= 1000: missed", "| x | 5 ms | - | - | >= 1000 | **no** |"),
        ("0.21 of go-libp2p, goal <= 0.3", "| x | 5 ms | go-libp2p | 0.21 | <= 0.3 | yes |"),
        ("1.1 of py-libp2p, 2, goal <= 0.35: missed", "| x | 5 ms | py-libp2p, 2 | 1.1 | <= 0.35 | **no** |"),
        ("7.1 of kademlia (no security)", "| x | 5 ms | kademlia (no security) | 7.1 | - | - |"),
        ("", "| x | 5 ms | - | - | - | - |"),
    ],
)  # fmt: skip
def test_older_files_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, line: str) -> None:
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    row = {"name": "x", "value": 5.0, "unit": "ms", "target": target}
    found = {"benchmark": "old", "measured_at": "", "machine": "", "command": "", "rows": [row]}
    (tmp_path / "old.json").write_text(json.dumps(found))
    assert line in performance.render()
