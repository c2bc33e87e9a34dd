"""The page at ``/docs``: the OpenAPI document as HTML, made on the server, without any script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --link: #3366cc; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1.5rem; }
h1 { margin: 0 0 .5rem; } h2 { margin: 2.5rem 0 .5rem; text-transform: capitalize; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
a { color: var(--link); } nav a { margin-right: 1rem; text-transform: capitalize; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .75rem; }
details > div { border-top: 1px solid var(--line); padding: .25rem .75rem .75rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 6px; overflow-x: auto; padding: .6rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; text-align: left;
  vertical-align: top; }
.verb { display: inline-block; font-weight: 700; width: 4.5rem; }
.muted { opacity: .7; }
"""
_BOUNDS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "pattern": "matches {}",
    "default": "default {}",
}
# Limits that only repeat what the type holds.
_WHOLE_RANGE = {2**31 - 1, -(2**31), 2**63 - 1, -(2**63)}


def content_security_policy() -> str:
    """Allows the page's own style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def render(document: Json) -> bytes:
    """The whole page."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    body = "".join(_Page(document).parts())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    ).encode()


class _Page:
    def __init__(self, document: Json) -> None:
        self._document = document

    def parts(self) -> Iterator[str]:
        info, tags = self._document["info"], self._document["tags"]
        yield f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1>"
        for paragraph in info["description"].split("\n\n"):
            yield f"<p>{escape(paragraph)}</p>"
        yield '<p>Made from <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p><nav>'
        yield from (f'<a href="#{escape(t["name"])}">{escape(_title(t["name"]))}</a>' for t in tags)
        yield "</nav>"
        for tag in tags:
            name = escape(tag["name"])
            yield f'<h2 id="{name}">{escape(_title(tag["name"]))}</h2>'
            yield f"<p>{escape(tag['description'])}</p>"
            yield from self._operations(tag["name"])

    def _operations(self, tag: str) -> Iterator[str]:
        for path, verbs in self._document["paths"].items():
            for verb, operation in verbs.items():
                if tag in operation["tags"]:
                    yield from self._operation(verb.upper(), path, operation)

    def _operation(self, verb: str, path: str, operation: Json) -> Iterator[str]:
        yield f'<details id="{escape(operation["operationId"])}"><summary>'
        yield f'<code><span class="verb">{verb}</span>{escape(path)}</code> '
        yield f'<span class="muted">{escape(operation["summary"])}</span></summary><div>'
        yield f"<p>{escape(str(operation.get('description') or ''))}</p>"
        parameters = [self._resolved(p) for p in operation.get("parameters", [])]
        if parameters:
            yield "<h3>Parameters</h3>"
            yield _table(
                ("name", "in", "type", ""),
                [
                    (
                        _name(p["name"], bool(p.get("required"))),
                        escape(p["in"]),
                        escape(_type(p["schema"])),
                        escape(_told({**p["schema"], "description": p.get("description", "")})),
                    )
                    for p in parameters
                ],
            )
        if "requestBody" in operation:
            yield "<h3>Body</h3>"
            yield f"<p>{escape(operation['requestBody']['description'])}</p>"
            yield from self._content(operation["requestBody"]["content"])
        yield f"<h3>Example</h3><pre>{escape(_curl(verb, path, operation))}</pre>"
        for status, response in operation["responses"].items():
            yield from self._response(status, self._resolved(response))
        yield "</div></details>"

    def _response(self, status: str, response: Json) -> Iterator[str]:
        if int(status) >= 400:
            yield f"<p><code>{status}</code> {escape(response['description'])}</p>"
            return
        yield f"<h3>{status}</h3><p>{escape(response['description'])}</p>"
        yield from self._content(response.get("content", {}))

    def _content(self, content: Json) -> Iterator[str]:
        if not content:
            return
        kind, first = next(iter(content.items()))
        yield f"<p><code>{escape(kind)}</code></p>"
        rows = list(self._rows("", first["schema"]))
        if rows:
            yield _table(("field", "type", ""), rows)
        if "example" in first:
            yield f"<pre>{escape(json.dumps(first['example'], indent=2, ensure_ascii=False))}</pre>"

    def _rows(self, prefix: str, schema: Json) -> Iterator[tuple[str, ...]]:
        schema = self._resolved(schema)
        for part in schema.get("allOf", []):
            yield from self._rows(prefix, part)
        required = schema.get("required", [])
        for name, inner in schema.get("properties", {}).items():
            held = self._resolved(inner)
            path = f"{prefix}{name}"
            shown = _name(path, name in required)
            yield shown, escape(_type(held)), escape(_told({**held, **inner}))
            yield from self._rows(f"{path}.", held)
            if "items" in held:
                yield from self._rows(f"{path}[].", held["items"])

    def _resolved(self, value: Json) -> Json:
        found = value
        while "$ref" in found:
            target: Any = self._document
            for step in found["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            found = target
        return found


def _title(tag: str) -> str:
    return tag.replace("_", " ")


def _name(name: str, required: bool) -> str:
    shown = f"<code>{escape(name)}</code>"
    return f"{shown} <b>*</b>" if required else shown


def _type(schema: Json) -> str:
    types = schema.get("type", "any")
    names = [types] if isinstance(types, str) else list(types)
    if schema.get("format"):
        names[0] = f"{names[0]} ({schema['format']})"
    if "enum" in schema:
        names[0] = " | ".join(json.dumps(value) for value in schema["enum"] if value is not None)
    return " or ".join(names)


def _told(schema: Json) -> str:
    limits = [
        text.format(schema[key])
        for key, text in _BOUNDS.items()
        if key in schema and schema[key] not in _WHOLE_RANGE
    ]
    return " ".join(filter(None, [schema.get("description", ""), "; ".join(limits)]))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _curl(verb: str, path: str, operation: Json) -> str:
    for parameter in operation.get("parameters", []):
        if parameter.get("in") == "path":
            path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    lines = [f'curl -X {verb} "$MINDWEAVE{path}"' if verb != "GET" else f'curl "$MINDWEAVE{path}"']
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $TOKEN"')
    if "requestBody" in operation:
        kind, content = next(iter(operation["requestBody"]["content"].items()))
        lines += [f"-H 'Content-Type: {kind}'", f"-d '{json.dumps(content['example'])}'"]
    return " \\\n  ".join(lines)
