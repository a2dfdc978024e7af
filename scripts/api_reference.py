"""The page about the HTTP API, written from the OpenAPI document that a gateway serves."""

from __future__ import annotations

import json
import shlex
from typing import Any

__all__ = ["render"]

_INTRO = """\
A gateway serves this at `api.host` and `api.port`, by default `http://127.0.0.1:8000`; put a reverse proxy with TLS in
front of it for others. The same as a machine reads it: `GET /openapi.json`.

**Keys.** What asks for work needs `Authorization: Bearer owm_...`; `owm keys add` makes a key, `owm keys revoke` ends
it within a second. A key has `api.requests_per_day` requests in any 24 hours, unless it was given another limit. The
landing page's visitors get a session, bound to their address, for `api.page_requests_per_day` requests. What was used
survives a restart; what fails through no fault of the caller (502, 503 or 504 before the first byte) is not counted.

**Length.** An answer has at most `max_tokens` new tokens: 256 where the request does not say, enough for a few
paragraphs; ask for more where you need it, up to what the model's context holds.

**Fields.** The OpenAI dialect does what a request asks or refuses it with 400 and the field's name in `param`: tools,
response formats, penalties, several choices and the like are not done here. Fields that change no answer (`user`,
`metadata` ...) are accepted. `context` of v1 is an open object.

**When a worker is lost** while it answers, another one begins anew. A whole answer is then just later. A stream of v1
has an event `restart`: drop all text so far. An OpenAI stream that has begun ends with an error, for it cannot take
text back.

**When a gateway stops** it answers new work with 503 and `Retry-After` and completes what runs; a stream that it has to
cut ends with an error.

**Half-closed connections** count as gone: a client that shuts down its sending side ends its request."""
_ERRORS = """\
Errors of v1 are [RFC 7807](https://www.rfc-editor.org/rfc/rfc7807) problems: `type` names the kind, `detail` says what
happened and what to do, `field` is the JSON path of the part that is wrong. Errors of the OpenAI dialect have OpenAI's
shape and its statuses: 400 for a prompt that is too long and for a wrong field. After the first piece of a stream an
error is the stream's last event."""
_COMMON = ("X-OWM-Model-Version", "X-OWM-OTS-Verified")
_LIMITS = {
    "exclusiveMinimum": "more than {}",
    "minimum": "{} or more",
    "exclusiveMaximum": "less than {}",
    "maximum": "{} or less",
    "minLength": "{} or more characters",
    "maxLength": "up to {} characters",
    "minItems": "{} or more items",
    "maxItems": "up to {} items",
}


def render() -> str:
    """The page."""
    from owm.api._openapi import document

    found = document()
    lines = ["# HTTP API", "", _INTRO, "", "Every response has these headers:", "", "| header | meaning |", "|---|---|"]
    some = found["paths"]["/healthz"]["get"]["responses"]["200"]["headers"]
    lines += [f"| `{name}` | {some[name]['description']} |" for name in _COMMON]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            lines += _operation(path, method.upper(), operation)
    asking = found["paths"]["/v1/query"]["post"]["responses"]
    lines += ["", "## Errors", "", _ERRORS, "", "| status | meaning | headers |", "|---|---|---|"]
    lines += [f"| {s} | {r['description']} | {_headers(r)} |" for s, r in asking.items() if s >= "400"]
    lines += ["", "## Bodies"]
    for name, schema in sorted(found["components"]["schemas"].items()):
        lines += _body(name, schema)
    return "\n".join(lines) + "\n"


def _operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    lines = ["", f"## {method} {path}", "", f"{operation['summary']}."]
    lines += ["", "Needs a key." if operation.get("security") else "Needs no key."]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += ["", "| parameter | in | type | meaning |", "|---|---|---|---|"]
        lines += [f"| `{p['name']}` | {p['in']} | {_type(p['schema'])} | {p['description']} |" for p in parameters]
    if "requestBody" in operation:
        lines += ["", f"Body: {_contents(operation['requestBody']['content'])}."]
    lines += ["", "```sh", _curl(path, method, operation), "```", "", "| status | answer | body | headers |"]
    lines += ["|---|---|---|---|"]
    responses = operation["responses"]
    for status, response in responses.items():
        if status < "400":
            contents = _contents(response["content"])
            lines.append(f"| {status} | {response['description']} | {contents} | {_headers(response)} |")
    errors = [status for status in responses if status >= "400"]
    return [*lines, "", f"[Errors](#errors): {', '.join(errors)}, as {_contents(responses[errors[0]]['content'])}."]


def _headers(response: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in response["headers"] if name not in _COMMON)


def _curl(path: str, method: str, operation: dict[str, Any]) -> str:
    for parameter in operation.get("parameters", []):
        path = path.replace("{" + parameter["name"] + "}", parameter["example"])
    unbuffered = "N" if path.endswith("/stream") else ""
    lines = [f"curl -s{unbuffered} http://127.0.0.1:8000{path}"]
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $OWM_API_KEY"')
    if method == "POST":
        content = operation["requestBody"]["content"]["application/json"]
        lines.append('-H "Content-Type: application/json"')
        lines.append("-d " + shlex.quote(json.dumps(content["example"])))
    return " \\\n  ".join(lines)


def _contents(content: dict[str, Any]) -> str:
    return " or ".join(f"`{media}`: {_type(entry['schema'])}" for media, entry in content.items())


def _body(name: str, schema: dict[str, Any]) -> list[str]:
    lines = ["", f"### {name}", ""]
    if schema.get("description"):
        lines += [schema["description"], ""]
    lines += ["| field | type | limits | default | meaning |", "|---|---|---|---|---|"]
    required = schema.get("required", [])
    for field, entry in schema["properties"].items():
        if field in required:
            default = "required"
        elif "default" in entry:
            default = f"`{json.dumps(entry['default'])}`"
        else:
            default = "left out"
        meaning = " ".join(part["description"] for part in (entry, *entry.get("anyOf", [])) if "description" in part)
        lines.append(f"| `{field}` | {_type(entry)} | {', '.join(_limits(entry))} | {default} | {meaning} |")
    if schema.get("additionalProperties") is False:
        lines += ["", "No other fields are allowed."]
    return lines


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and "properties" in schema:
        return "object with " + ", ".join(f"`{name}`" for name in schema["properties"])
    return " or ".join(kind) if isinstance(kind, list) else kind


def _limits(schema: dict[str, Any]) -> list[str]:
    """Those of the value and, for a list, of its items."""
    found = [text.format(schema[key]) for key, text in _LIMITS.items() if key in schema]
    if isinstance(schema.get("items"), dict):
        found += [f"each {limit}" for limit in _limits(schema["items"])]
    for option in schema.get("anyOf", []):
        found += [limit for limit in _limits(option) if limit not in found]
    return found
