"""An OpenAPI document as something to read: every call with its fields, an example to paste into a shell, and its errors."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from wildreward_ray.report.api_types import (
    Definitions,
    example_of,
    fields_table,
    in_code,
    purpose_of,
    reference_of,
    resolved,
    type_of,
)
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import table
from wildreward_ray.report.values import items, mapping

_METHODS = ("get", "post", "put", "patch", "delete")
_JSON = "application/json"


def title_of(openapi: Mapping[str, Any]) -> str:
    """The document's title, or a plain one."""
    return str(mapping(openapi.get("info")).get("title") or "API reference")


def reference(openapi: Mapping[str, Any]) -> Html:
    """The body of the page.

    Args:
        openapi: an OpenAPI 3.1 document; `$ref`s into `components` are followed, others are shown as they are.
    """
    info, components = mapping(openapi.get("info")), mapping(openapi.get("components"))
    known = {str(name): mapping(schema) for name, schema in mapping(components.get("schemas")).items()}
    calls = [
        (method, str(path), mapping(operation))
        for path, methods in mapping(openapi.get("paths")).items()
        for method, operation in mapping(methods).items()
        if method in _METHODS
    ]
    version = info.get("version")
    # A browser that follows a link sends no token.
    document = el("code", "/openapi.json") if openapi.get("security") else el("a", "openapi.json", href="openapi.json")
    return join(
        el("h1", title_of(openapi)),
        el("p", f"version {version}", class_="made") if version else None,
        _prose(info.get("description")),
        el("p", el("a", "Playground", href="./"), " · ", document, " for code generators"),
        el("ul", *(_entry(method, path, operation) for method, path, operation in calls), class_="calls"),
        _before(openapi, components),
        *(_call(method, path, operation, openapi, known) for method, path, operation in calls),
        _shared_parameters(components, known),
        _shared_replies(openapi, components, known),
        _objects(known, {reference_of(mapping(_body(o, openapi).get("schema"))) for _, _, o in calls}),
    )


def _anchor(method: str, path: str) -> str:
    return f"{method}-{re.sub('[^A-Za-z0-9]+', '-', path).strip('-')}"


def _named(method: str, path: str) -> Html:
    return el("code", el("span", method.upper(), class_="method"), f" {path}")


def _entry(method: str, path: str, operation: Mapping[str, Any]) -> Html:
    link = el("a", _named(method, path), href=f"#{_anchor(method, path)}")
    summary = operation.get("summary")
    return el("li", link, f": {summary}" if summary else None)


def _before(openapi: Mapping[str, Any], components: Mapping[str, Any]) -> Html:
    """What holds for all calls."""
    schemes = mapping(components.get("securitySchemes")).values()
    urls = [str(server["url"]) for server in map(mapping, items(openapi.get("servers"))) if "url" in server]
    absolute = next((url for url in urls if url.startswith("http")), None)
    wanted = [str(scheme["description"]) for scheme in map(mapping, schemes) if scheme.get("description")]
    export = f"export WILDREWARD_URL={shlex.quote(absolute or 'http://127.0.0.1:8000')}"
    return el(
        "section",
        el("h2", "Before the first call"),
        el("p", "The examples below run in a shell that knows where the service is", *_token_words(bool(schemes)), ":"),
        el("pre", export + ("\nexport WILDREWARD_TOKEN=…" if schemes else "")),
        *map(_prose, wanted),
        id="before",
    )


def _token_words(token: bool) -> Iterator[Child]:
    if token:
        yield ", and, where the service wants a bearer token, what it is"


def _call(method: str, path: str, operation: Mapping[str, Any], openapi: Mapping[str, Any], known: Definitions) -> Html:
    secured = bool(operation.get("security", openapi.get("security")))
    body, parameters = _body(operation, openapi), [mapping(p) for p in items(operation.get("parameters"))]
    own = [parameter for parameter in parameters if "$ref" not in parameter]
    shared = [str(p["$ref"]).rpartition("/")[2] for p in parameters if "$ref" in p]
    return el(
        "section",
        el("h2", _named(method, path)),
        el("p", str(operation["summary"])) if operation.get("summary") else None,
        _prose(operation.get("description")),
        join(el("h3", "Parameters"), _parameters([(None, p) for p in own], known)) if own else None,
        el("p", "Parameters that several calls take: ", *_links(shared, "parameter"), ".") if shared else None,
        _request(body, known),
        *_examples(method, _filled(path, own), body, secured=secured, known=known),
        *_replies(operation, openapi, known),
        id=_anchor(method, path),
    )


def _body(operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(_followed(operation.get("requestBody"), openapi).get("content")).get(_JSON))


def _links(names: list[str], kind: str) -> list[Html]:
    return [join(", " if i else None, el("a", name, href=f"#{kind}-{name}")) for i, name in enumerate(names)]


def _parameters(parameters: Sequence[tuple[str | None, Mapping[str, Any]]], known: Definitions) -> Html:
    """A table of (the row's id, parameter)."""
    written = [
        [
            el("code", str(p.get("name")), id=anchor),
            join(str(p.get("in")), ", ", type_of(mapping(p.get("schema")), known)),
            _prose(p.get("description")),
        ]
        for anchor, p in parameters
    ]
    return table(["Name", "Where and what", "Meaning"], written)


def _filled(path: str, parameters: list[Mapping[str, Any]]) -> str:
    """The path with its parameters' examples, or their names in capitals, in place of `{name}`."""
    examples = {str(p.get("name")): p.get("example") for p in parameters}
    return re.sub(r"\{(\w+)\}", lambda m: str(examples.get(m[1]) or m[1].upper()), path)


def _request(body: Mapping[str, Any], known: Definitions) -> Html | None:
    if not body:
        return None
    schema = mapping(body.get("schema"))
    whole = resolved(schema, known)
    members = fields_table(whole, known) or el("p", "JSON: ", type_of(schema, known), ".")
    name = reference_of(schema)
    return el("div", el("h3", "Request"), _prose(purpose_of(whole)), members, id=f"type-{name}" if name else None)


def _examples(method: str, path: str, body: Mapping[str, Any], *, secured: bool, known: Definitions) -> Iterator[Html]:
    for name, value in _bodies(body, known):
        yield el("h3", f"Example: {name}" if name else "Example")
        yield el("pre", _curl(method, path, value, secured=secured), tabindex=0)


def _bodies(body: Mapping[str, Any], known: Definitions) -> list[tuple[str, Any]]:
    """(what it shows, request body) of every example; one made from the schema where none is given."""
    if not body:
        return [("", None)]
    return _given_examples(body) or [("", example_of(mapping(body.get("schema")), known))]


def _given_examples(media: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if "example" in media:
        return [("", media["example"])]
    examples = {name: mapping(example) for name, example in mapping(media.get("examples")).items()}
    return [(str(example.get("summary") or name), example.get("value")) for name, example in examples.items()]


def _curl(method: str, path: str, body: Any, *, secured: bool) -> str:
    lines = ['curl -sS "$WILDREWARD_URL"' + shlex.quote(path)]
    if method not in ("get", "post"):
        lines[0] += f" -X {method.upper()}"
    if secured:
        lines.append('-H "Authorization: Bearer $WILDREWARD_TOKEN"')
    if body is not None:
        lines.append("-H 'Content-Type: application/json'")
        lines.append("--data-binary " + shlex.quote(json.dumps(body, indent=1, ensure_ascii=False)))
    return " \\\n  ".join(lines)


def _replies(operation: Mapping[str, Any], openapi: Mapping[str, Any], known: Definitions) -> Iterator[Html]:
    given = mapping(operation.get("responses"))
    own = {status: mapping(reply) for status, reply in given.items() if "$ref" not in mapping(reply)}
    shared = [str(mapping(reply)["$ref"]) for reply in given.values() if "$ref" in mapping(reply)]
    if given:
        yield el("h3", "Replies")
    if own:
        yield _replies_table(own, openapi, known)
    if shared:
        yield el("p", "Errors: ", *_links([pointer.rpartition("/")[2] for pointer in shared], "reply"), ".")
    for status, reply in own.items():
        for _, value in _given_examples(mapping(mapping(reply.get("content")).get(_JSON))):
            yield el("h3", f"A reply with status {status}")
            yield el("pre", json.dumps(value, indent=1, ensure_ascii=False), tabindex=0)


def _replies_table(
    replies: Mapping[Any, Mapping[str, Any]], openapi: Mapping[str, Any], known: Definitions, *, anchors: bool = False
) -> Html:
    written = []
    for name, reply in replies.items():
        media = [mapping(m) for m in mapping(reply.get("content")).values()]
        kinds = [type_of(mapping(m.get("schema")), known) for m in media if m.get("schema")]
        headers = [
            el("p", "Header ", el("code", str(header)), ": ", *in_code(str(_followed(h, openapi).get("description"))))
            for header, h in mapping(reply.get("headers")).items()
        ]
        status = el("code", str(name), id=f"reply-{name}" if anchors else None)
        written.append([status, join(_prose(reply.get("description")), *headers), join(*kinds)])
    return table(["Status", "When", "Body"], written)


def _shared_parameters(components: Mapping[str, Any], known: Definitions) -> Html | None:
    shared = [(f"parameter-{key}", mapping(p)) for key, p in mapping(components.get("parameters")).items()]
    if not shared:
        return None
    return el(
        "section",
        el("h2", "Parameters that several calls take"),
        _parameters(shared, known),
        id="parameters",
    )


def _shared_replies(openapi: Mapping[str, Any], components: Mapping[str, Any], known: Definitions) -> Html | None:
    shared = {name: mapping(reply) for name, reply in mapping(components.get("responses")).items()}
    if not shared:
        return None
    return el("section", el("h2", "Errors"), _replies_table(shared, openapi, known, anchors=True), id="errors")


def _objects(known: Definitions, described: Set[str | None]) -> Html | None:
    """The named objects that no call has shown as its request."""
    shown = [
        el("div", el("h3", el("code", name)), _prose(purpose_of(schema)), _members(schema, known), id=f"type-{name}")
        for name, schema in known.items()
        if name not in described
    ]
    return el("section", el("h2", "Objects"), *shown, id="objects") if shown else None


def _members(schema: Mapping[str, Any], known: Definitions) -> Html:
    return fields_table(schema, known) or el("p", type_of(schema, known))


def _followed(value: Any, openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `$ref` of a reply, parameter, header or body stands for."""
    found = mapping(value)
    pointer = found.get("$ref")
    if not isinstance(pointer, str) or not pointer.startswith("#/"):
        return found
    at: Any = openapi
    for part in pointer[2:].split("/"):
        at = mapping(at).get(part.replace("~1", "/").replace("~0", "~"))
    return mapping(at)


def _prose(value: Any) -> Html | None:
    """Paragraphs, with what stands between backticks as code."""
    if not value:
        return None
    paragraphs = [p for p in re.split(r"\n\s*\n", str(value).strip()) if p.strip()]
    return join(*(el("p", *in_code(p)) for p in paragraphs))
