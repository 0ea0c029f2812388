"""JSON schemas as words: what a field may hold, a table of an object's fields, and a small example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import table
from wildreward_ray.report.values import items, mapping

Definitions = Mapping[str, Mapping[str, Any]]
"""Named schemas: what `#/components/schemas/NAME` stands for."""

_REF = "#/components/schemas/"
_NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
}
_COUNTABLE = {"text", "whole number", "number", "object"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} or more characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "matching {}",
    "default": "default {}",
}
# An object may hold itself; an example that needs more levels than this is cut.
_DEPTH = 6


def resolved(schema: Mapping[str, Any], known: Definitions) -> Mapping[str, Any]:
    """The schema that `schema` is or refers to."""
    name = reference_of(schema)
    return known.get(name, schema) if name is not None else schema


def type_of(schema: Mapping[str, Any], known: Definitions) -> Html:
    """What a value of `schema` is, in words; named objects are links to their description."""
    name = reference_of(schema)
    if name is not None:
        return el("a", name, href=f"#type-{name}") if name in known else el("code", name)
    return join(_kind(schema, known), *_limits(schema))


def purpose_of(schema: Mapping[str, Any]) -> str:
    """The description of a named schema without the list of its fields that our models' docstrings end with."""
    return _docstring(schema)[0]


def fields_table(schema: Mapping[str, Any], known: Definitions) -> Html | None:
    """A table of an object's fields. None for what has none."""
    properties = mapping(schema.get("properties"))
    if not properties:
        return None
    needed, notes = set(map(str, items(schema.get("required")))), _docstring(schema)[1]
    written = []
    for name, value in properties.items():
        field = mapping(value)
        mark = el("span", " required", class_="needed") if name in needed else None
        meaning = field.get("description") or notes.get(str(name)) or purpose_of(resolved(field, known))
        written.append([join(el("code", str(name)), mark), type_of(field, known), join(*in_code(str(meaning)))])
    return table(["Field", "Holds", "Meaning"], written)


def example_of(schema: Mapping[str, Any], known: Definitions, depth: int = 0) -> Any:
    """A value of `schema`: its own example or default where it has one, else the least that fits it."""
    schema = resolved(schema, known)
    for given in (*items(schema.get("examples"))[:1], *(schema[k] for k in ("const", "default") if k in schema)):
        return given
    choices = [*items(schema.get("anyOf")), *items(schema.get("oneOf")), *items(schema.get("allOf"))]
    if schema.get("enum") or choices:
        return items(schema.get("enum"))[0] if schema.get("enum") else example_of(mapping(choices[0]), known, depth)
    kind = schema.get("type")
    if kind == "object" and depth < _DEPTH:
        properties = mapping(schema.get("properties"))
        names = items(schema.get("required")) or list(properties)
        return {str(n): example_of(mapping(properties.get(n)), known, depth + 1) for n in names}
    if kind == "array" and depth < _DEPTH:
        parts = items(schema.get("prefixItems")) or [schema.get("items")]
        return [example_of(mapping(part), known, depth + 1) for part in parts]
    return {"string": "…", "integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}.get(str(kind))


def in_code(line: str) -> Iterator[Child]:
    """A line of prose in which what stands between backticks is code."""
    for i, part in enumerate(re.split(r"`+([^`]+)`+", " ".join(line.split()))):
        yield el("code", part) if i % 2 else part


def _docstring(schema: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """(purpose, what every field is) of a description in the form of a docstring with an `Attributes:` block."""
    purpose, _, block = str(schema.get("description") or "").partition("\nAttributes:\n")
    entries = re.split(r"^ {4}(\w+): ", block, flags=re.MULTILINE)[1:]
    return purpose.strip(), dict(zip(entries[::2], entries[1::2], strict=True))


def reference_of(schema: Mapping[str, Any]) -> str | None:
    """The name of the schema that `schema` refers to, or None where it is one itself."""
    pointer = schema.get("$ref")
    return pointer.removeprefix(_REF) if isinstance(pointer, str) else None


def _kind(schema: Mapping[str, Any], known: Definitions) -> Html:
    if "const" in schema:
        return el("code", _written(schema["const"]))
    if schema.get("enum"):
        return _either(el("code", _written(value)) for value in schema["enum"])
    choices = [*items(schema.get("anyOf")), *items(schema.get("oneOf")), *items(schema.get("allOf"))]
    if choices:
        return _either(type_of(mapping(choice), known) for choice in choices)
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return _either(_kind({**schema, "type": kind}, known) for kind in kinds)
    if kinds == "array":
        return _list(schema, known)
    if kinds == "object" and mapping(schema.get("additionalProperties")):
        return join("object of ", type_of(mapping(schema["additionalProperties"]), known))
    return join(_NAMES.get(str(kinds), str(kinds or "anything")))


def _list(schema: Mapping[str, Any], known: Definitions) -> Html:
    parts = items(schema.get("prefixItems"))
    if not parts:
        of = mapping(schema.get("items"))
        plain = _NAMES.get(str(of.get("type"))) if set(of) <= {"type", "title"} else None
        return join("list of ", f"{plain}s" if plain in _COUNTABLE else type_of(of, known))
    inner = [type_of(mapping(part), known) for part in parts]
    return join("[", *(join(", " if i else None, part) for i, part in enumerate(inner)), "]")


def _either(parts: Iterator[Html]) -> Html:
    return join(*(join(" or " if i else None, part) for i, part in enumerate(parts)))


def _limits(schema: Mapping[str, Any]) -> Iterator[Html]:
    for key, words in _LIMITS.items():
        if schema.get(key) is not None:
            yield join(", " + words.format(_written(schema[key])))


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
