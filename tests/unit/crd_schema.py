"""Holds a Kubernetes manifest to a CRD's OpenAPI schema as an API server with strict field validation does."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]


def violations(schema: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What the schema refuses in the manifest, each with its path; an empty list where nothing is.

    `schema` is `openAPIV3Schema` of one version, in the dialect of
    https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/. Fields that it doesn't
    name are refused too, though a server would only drop them in silence. `apiVersion`, `kind` and `metadata` are not looked at.
    """
    judged = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata")}
    found = jsonschema.Draft202012Validator(closed(schema)).iter_errors(judged)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def closed(schema: Any) -> Any:
    """The schema with every object closed to fields that it doesn't name, unless it says that it keeps them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # Below `properties` a key is a field's name, which may be any word, `properties` and `items` included.
    made = {
        key: {name: closed(field) for name, field in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    if "properties" in made and "additionalProperties" not in made and not made.get(_KEEPS):
        made["additionalProperties"] = False
    return made


def disagreements(excerpt: dict[str, Any], whole: dict[str, Any], path: str = "") -> list[str]:
    """Fields of the excerpt that the whole schema doesn't have, or has with another type, with fewer values or more demands."""
    found = []
    if excerpt.get("type") != whole.get("type"):
        found.append(f"{path}: type {excerpt.get('type')}, not {whole.get('type')}")
    if "enum" in whole and not set(excerpt.get("enum", ["(any)"])) <= set(whole["enum"]):
        found.append(f"{path}: values {excerpt.get('enum')}, not {whole['enum']}")
    if missing := set(whole.get("required", [])) - set(excerpt.get("required", [])):
        found.append(f"{path}: {sorted(missing)} are required")
    for name, field in excerpt.get("properties", {}).items():
        other = whole.get("properties", {}).get(name)
        found += [f"{path}.{name}: unknown"] if other is None else disagreements(field, other, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in excerpt:
            found += disagreements(excerpt[part], whole.get(part) or {}, f"{path}.{part}")
    return found


_KEEPS = "x-kubernetes-preserve-unknown-fields"
