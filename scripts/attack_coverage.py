"""Makes docs/attack-coverage.md: which attacks of the catalogue have a test."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "tests" / "attacks" / "catalogue.toml"


def _marks(node: ast.AST) -> Iterator[str]:
    for decorator in getattr(node, "decorator_list", ()):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.attack":
            for argument in decorator.args:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


def tests_by_id() -> dict[str, list[str]]:
    """For each attack id the tests that carry its mark, as ``path::name``; read from the source, nothing is run."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for attack in _marks(node):
                    found[attack].append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def render() -> str:
    """The page."""
    catalogue = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    found = tests_by_id()
    unknown = sorted(set(found) - set(catalogue))
    if unknown:
        raise SystemExit(f"marks that the catalogue does not know: {', '.join(unknown)}")
    covered = sum(1 for attack in catalogue if attack in found)
    lines = [
        "# Attack coverage",
        "",
        f"{covered} of {len(catalogue)} attacks have a test. Each test performs the attack on the real component and",
        "asserts the outcome with a number; `pytest -m attack` runs them all. This page is made by `make docs`.",
    ]
    group = ""
    for attack, row in catalogue.items():
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"## {group}", "", "| id | attack | what must hold | tests |", "|---|---|---|---|"]
        tests = "<br>".join(f"`{test}`" for test in found.get(attack, ())) or "none yet"
        lines.append(f"| {attack} | {row['attack']} | {row['outcome']} | {tests} |")
    return "\n".join(lines) + "\n"
