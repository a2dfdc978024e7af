"""The page about the HTTP API holds all that the OpenAPI document does, and its examples work."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from owm.api._openapi import document
from tests.api._gateway import served

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api-reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """From this heading to the next."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return found[1]


def test_every_path_is_on_the_page_with_its_parameters_statuses_and_an_example() -> None:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            text = section(f"{method.upper()} {path}")
            assert operation["summary"] in text
            assert "curl -s" in text
            for parameter in operation.get("parameters", []):
                assert f"| `{parameter['name']}` | path |" in text
            for status in operation["responses"]:
                assert re.search(rf"\b{status}\b", text), (path, status)


def test_every_field_of_every_body_is_on_the_page() -> None:
    for name, schema in document()["components"]["schemas"].items():
        text = section(name)
        assert [field for field in schema["properties"] if f"| `{field}` |" not in text] == []


def test_limits_and_defaults_of_requests_are_on_the_page() -> None:
    text = section("QueryRequest")
    assert "| `query` | string | 1 or more characters, up to 1000000 characters | required |" in text
    assert "| `max_tokens` | integer | 1 or more, 32768 or less | `256` |" in text
    assert "No other fields are allowed." in text
    assert "| `temperature` | number or null | 0 or more, 2 or less |" in section("ChatCompletionRequest")


def test_every_status_is_explained() -> None:
    statuses = {s for m in document()["paths"].values() for o in m.values() for s in o["responses"] if s >= "400"}
    text = section("Errors")
    assert [status for status in statuses if f"| {status} | " not in text] == []


def test_links_within_the_page_lead_to_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert {target for target in re.findall(r"\]\(#([^)]+)\)", PAGE)} - headings == set()


async def test_every_example_is_understood_by_a_gateway(tmp_path: Path) -> None:
    """404 is an answer too, for ids that nobody has; that the path is known can be told from the words."""
    commands = [shlex.split(block.replace("\\\n", "")) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)]
    assert len(commands) == len(document()["paths"])
    async with served(tmp_path) as gateway, gateway.client() as client:
        for command in commands:
            path = command[2].removeprefix("http://127.0.0.1:8000")
            sent = json.loads(command[command.index("-d") + 1]) if "-d" in command else None
            response = await client.request("GET" if sent is None else "POST", path, json=sent)
            assert response.status_code in {200, 404, 503}, (path, response.text)
            assert "no such path" not in response.text
