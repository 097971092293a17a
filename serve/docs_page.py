"""The page /docs: the API's description as plain HTML, made on the server; it needs no script and no other site."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import Response

#: FastAPI's words where a route has none.
_SAYS_NOTHING = "Successful Response"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title>
<link rel="icon" href="web/mark.svg" type="image/svg+xml">
<link rel="stylesheet" href="web/docs.css">
</head>
<body>
<header><h1>{title} API</h1><p>{summary} Version {version}. <a href="./">Page</a> &middot;
<a href="openapi.json">openapi.json</a></p></header>
<main>
<p>Where the server has keys, all but <code>/healthz</code> needs one:
<code>Authorization: Bearer KEY</code>. Errors are <code>application/problem+json</code>: what, where, and what would
work.</p>
<pre><code>curl --data-binary @cat.jpg {here}/models/NAME/predict
curl -F file=@a.jpg -F file=@b.jpg '{here}/models/NAME/predict?top_k=3'</code></pre>
<nav aria-label="Routes"><ul>
{contents}
</ul></nav>
{operations}
<section id="schemas"><h2>Schemas</h2>
{schemas}
</section>
</main>
</body>
</html>
"""


def docs_page(described: Mapping[str, Any]) -> Response:
    """The description (OpenAPI) as a page."""
    info = described["info"]
    routes = [
        (method.upper(), path, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    page = _PAGE.format(
        title=escape(info["title"]),
        summary=escape(info["summary"]),
        version=escape(info["version"]),
        here="http://127.0.0.1:8000",
        contents="\n".join(_entry(*route) for route in routes),
        operations="\n".join(_operation(*route) for route in routes),
        schemas="\n".join(_schema(*item) for item in sorted(described["components"]["schemas"].items())),
    )
    return Response(page, media_type="text/html")


def _entry(method: str, path: str, operation: Mapping[str, Any]) -> str:
    summary = escape(operation["summary"])
    return f'<li><a href="#{operation["operationId"]}"><code>{method} {escape(path)}</code></a> {summary}</li>'


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f'<section id="{operation["operationId"]}"><h2><code>{method} {escape(path)}</code></h2>']
    parts.append(f"<p>{escape(operation['summary'])}.</p>")
    parts += [f"<p>{_words(text)}</p>" for text in operation.get("description", "").split("\n\n") if text]
    if operation.get("parameters"):
        rows = [_parameter(parameter) for parameter in operation["parameters"]]
        parts.append(_table("Parameters", ("name", "in", "type", "default", ""), rows))
    if "requestBody" in operation:
        rows = [
            (f"<code>{escape(kind)}</code>", _type(body)) for kind, body in operation["requestBody"]["content"].items()
        ]
        parts.append(_table("Body", ("type", ""), rows))
    rows = [
        (status, _answer_types(answer), _said_of(answer)) for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(_table("Answers", ("status", "type", ""), rows))
    return "\n".join([*parts, "</section>"])


def _said_of(answer: Mapping[str, Any]) -> str:
    text = answer["description"]
    return "" if text == _SAYS_NOTHING else _words(text)


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, ...]:
    schema = parameter["schema"]
    default = "required" if parameter.get("required") else escape(json.dumps(schema.get("default")))
    name = f"<code>{escape(parameter['name'])}</code>"
    return name, parameter["in"], _type(parameter), default, _words(parameter.get("description", ""))


def _answer_types(answer: Mapping[str, Any]) -> str:
    return "<br>".join(f"<code>{escape(kind)}</code> {_type(body)}" for kind, body in answer.get("content", {}).items())


def _type(holder: Mapping[str, Any]) -> str:
    """A schema in a word or two; those that have a name are links to it."""
    schema = holder["schema"]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{escape(name)}</a>'
    if schema.get("type") == "object" and "properties" in schema:
        fields = schema["properties"].items()
        return "<br>".join(f"<code>{escape(name)}</code>: {_type({'schema': field})}" for name, field in fields)
    if schema.get("format") == "binary":
        return "a file as it is"
    if schema.get("type") == "array":
        return f"one or several, each {_type({'schema': schema['items']})}"
    return escape(str(schema.get("type", "any")))


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(_without_titles(schema), indent=1))
    return (
        f'<details id="schema-{escape(name)}"><summary>{escape(name)}</summary><pre><code>{text}</code></pre></details>'
    )


def _without_titles(schema: Any) -> Any:
    """Pydantic titles every field with its own name."""
    if isinstance(schema, dict):
        return {
            name: _without_titles(value)
            for name, value in schema.items()
            if name != "title" or not isinstance(value, str)
        }
    return [_without_titles(value) for value in schema] if isinstance(schema, list) else schema


def _table(caption: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _words(text: str) -> str:
    """A docstring as HTML: what stands between backticks is code."""
    parts = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
