"""The description of the API as a page, with nothing loaded from elsewhere."""

import json
from html import escape
from typing import Any


def reference(description: dict[str, Any]) -> str:
    """Return a page that shows an OpenAPI description."""
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in description["paths"].items() for method, operation in methods.items())
    schemas = "".join(
        f"<h3 id='{escape(name)}'><code>{escape(name)}</code></h3>"
        f"<p>{escape(schema.get('description', ''))}</p>{_properties(schema)}"
        for name, schema in description["components"]["schemas"].items())
    info = description["info"]
    paragraphs = "".join(f"<p>{escape(part)}</p>" for part in info["description"].split("\n\n"))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(info['title'])}: the API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="icon.svg"><link rel="stylesheet" href="page.css"></head>
<body><main class="reference"><h1>{escape(info['title'])}: the API</h1>{paragraphs}
<p>The same for programs: <a href="openapi.json"><code>openapi.json</code></a> (OpenAPI). For
people: <a href=".">the page</a>.</p>
<pre>curl localhost:8000/predict -H 'Content-Type: application/json' \\
  -d '{escape(json.dumps({"title": "...", "summary": "..."}))}'</pre>
{operations}<h2>Schemas</h2>{schemas}</main></body></html>"""


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(found['name'])}</code> ({escape(_kind(found['schema']))}): "
        f"{escape(found.get('description', ''))}</li>" for found in operation.get("parameters", []))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    taken = f"<p>Body: {_linked(body['schema'])}, JSON</p>" if body else ""
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{_answer(found)}</td>"
        f"<td>{escape(found.get('description', ''))}</td></tr>"
        for status, found in operation["responses"].items())
    return (f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            f"<p>{escape(operation.get('description', ''))}</p>{taken}<ul>{parameters}</ul>"
            f"<table><tr><th>status</th><th>answer</th><th></th></tr>{answers}</table>")


def _answer(response: dict[str, Any]) -> str:
    return " or ".join(_linked(content["schema"]) if content["schema"] else escape(kind)
                       for kind, content in response.get("content", {}).items())


def _properties(schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_linked(found)}</td>"
        f"<td>{'' if name in needed else 'optional'}</td>"
        f"<td>{escape(found.get('description', ''))}</td></tr>"
        for name, found in schema.get("properties", {}).items())
    return f"<table>{rows}</table>"


def _linked(schema: dict[str, Any]) -> str:
    """Return a schema in words, those of its own linked."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f"<a href='#{name}'>{name}</a>"
    choices = schema.get("oneOf") or schema.get("anyOf")
    if choices:
        return " or ".join(map(_linked, choices))
    if schema.get("type") == "array":
        return f"list of {_linked(schema['items'])}"
    return escape(_kind(schema))


def _kind(schema: dict[str, Any]) -> str:
    bounds = [f"{words} {schema[key]:,g}" for key, words in (
        ("minimum", "from"), ("maximum", "to"), ("maxLength", "of at most")) if key in schema]
    characters = ["characters"] * ("maxLength" in schema)
    return " ".join([schema.get("type", "anything"), *bounds, *characters])
