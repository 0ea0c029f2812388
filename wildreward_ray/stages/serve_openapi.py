"""The OpenAPI 3.1 document of the reward service, from the models that its protocols read and write.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from wildreward_ray import __version__
from wildreward_ray.core.protocols import Dialect
from wildreward_ray.core.service import ModelCard
from wildreward_ray.core.wire import Health

ERRORS = {
    400: "The body is not JSON in UTF-8, or a header has no meaning.",
    401: "The bearer token is missing or wrong.",
    404: "The model that was named is not served.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or holds too many items.",
    415: "The body is compressed.",
    422: "The body is JSON but no request of this protocol, or an input is too long; `field` says where.",
    500: "A reward could not be computed, or the service failed. Another try gives the same.",
    503: "No engine answers, none did in time, or too many items are waiting; try again after `Retry-After` seconds.",
}
SCORE_ERRORS = (400, 401, 404, 408, 413, 415, 422, 500, 503)

_PROMPT, _REPLY = "How do I undo my last git commit?", "Run `git reset --soft HEAD~1`; your changes stay staged."
_TEXT = f"user: {_PROMPT}\n### How well does this reply serve the user?\nassistant: {_REPLY}"
EXAMPLES: dict[str, Any] = {
    "native": {"items": [{"prompt": _PROMPT, "response": _REPLY}]},
    "wildreward": {"query": [_TEXT]},
    "verl": {"input": _TEXT, "use_activation": False},
    "slime": {"prompt": _PROMPT, "response": _REPLY},
    "llama_factory": {"model": "wildreward", "messages": [_TEXT]},
    "tei": {"inputs": [_PROMPT, _REPLY]},
}


class Refused(BaseModel):
    """Every reply that is not a 2xx.

    Attributes:
        detail: what was met and the rule it breaks, for people.
        code: a stable word for programs.
        field: where in the request it was met, e.g. `items[3].response`.
    """

    detail: str
    code: str
    field: str | None = None


class ListedModel(ModelCard):
    """A model as OpenAI's list of models has it, and whatever else is known of it."""

    object: Literal["model"]
    owned_by: Literal["wildreward"]


class ModelList(BaseModel):
    """Reply of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ListedModel]


def openapi(dialects: Sequence[Dialect], *, secured: bool) -> dict[str, Any]:
    """The whole document.

    Args:
        dialects: the protocols that rewards can be asked for by.
        secured: clients must send a bearer token.
    """
    schemas, components = _schemas(dialects)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "WildReward",
            "version": __version__,
            "summary": "Rewards for assistant replies, as ordinal satisfaction levels.",
            "description": (
                "A score is 1 + the sum of P(y > k) over the K-1 thresholds, so it lies in [1, K]. A request gets every "
                "score it asks for or an error that says why."
            ),
        },
        "paths": {
            **{dialect.path: {"post": _score(dialect, schemas, secured)} for dialect in dialects},
            **_gets(schemas, secured),
        },
        "components": {
            "schemas": components,
            "responses": {str(status): _error(status, schemas) for status in ERRORS},
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
        },
    }
    if secured:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return document


def _schemas(dialects: Sequence[Dialect]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of every body by a name of its own, and the schemas that these refer to."""
    own = {"health": Health, "models": ModelList, "model": ListedModel, "error": Refused}
    adapters: list[tuple[str, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (name, "serialization", TypeAdapter(model)) for name, model in own.items()
    ]
    for dialect in dialects:
        adapters.append((f"{dialect.name} request", "validation", _adapter(dialect.request)))
        adapters.append((f"{dialect.name} reply", "serialization", _adapter(dialect.reply)))
    found, shared = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    schemas = {name: _without_null_defaults(schema) for (name, _), schema in found.items()}
    return schemas, _without_null_defaults(shared.get("$defs", {}))


def _without_null_defaults(schema: Any) -> Any:
    """`schema` without `default: null`, which models write for keys that may be left out, though null is no value of most."""
    if isinstance(schema, list):
        return [_without_null_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: _without_null_defaults(v) for k, v in schema.items() if not (k == "default" and v is None)}


def _adapter(model: Any) -> TypeAdapter[Any]:
    return model if isinstance(model, TypeAdapter) else TypeAdapter(model)


def _score(dialect: Dialect, schemas: dict[str, Any], secured: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schemas[f"{dialect.name} request"]}
    if dialect.name in EXAMPLES:
        content["example"] = EXAMPLES[dialect.name]
    return {
        "operationId": f"score_{dialect.name}",
        "summary": dialect.summary,
        "tags": ["rewards"],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _PARAMETERS],
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {"200": _ok("The rewards.", schemas[f"{dialect.name} reply"]), **_refs(SCORE_ERRORS, secured)},
    }


def _gets(schemas: dict[str, Any], secured: bool) -> dict[str, Any]:
    health = {
        "tags": ["service"],
        "responses": {"200": _ok("An engine answers.", schemas["health"]), **_refs((500, 503), secured)},
        "security": [],
    }
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/healthz": {"get": {"operationId": "healthz", "summary": "Whether an engine answers now.", **health}},
        "/readyz": {"get": {"operationId": "readyz", "summary": "Whether requests can be scored now.", **health}},
        "/v1/models": {
            "get": {
                "operationId": "models",
                "summary": "What is served.",
                "tags": ["service"],
                "responses": {
                    "200": _ok("The model that is served.", schemas["models"]),
                    **_refs((401, 500, 503), secured),
                },
            }
        },
        "/v1/models/{id}": {
            "get": {
                "operationId": "model",
                "summary": "What is served under a name.",
                "tags": ["service"],
                "parameters": [model_id],
                "responses": {
                    "200": _ok("The model.", schemas["model"]),
                    **_refs((401, 404, 500, 503), secured),
                },
            }
        },
    }


def _ok(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        "content": {"application/json": {"schema": schema}},
    }


def _error(status: int, schemas: dict[str, Any]) -> dict[str, Any]:
    reply = _ok(ERRORS[status], schemas["error"])
    if status == 503:
        reply["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status == 401:
        reply["headers"]["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    return reply


def _refs(statuses: Sequence[int], secured: bool) -> dict[str, Any]:
    kept = [status for status in statuses if secured or status != 401]
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in kept}


_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]+$"}
_PARAMETERS: dict[str, Any] = {
    "X-Request-Id": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "An id that the reply and the service's log carry; one is made where it is missing.",
        "schema": _ID_SCHEMA,
    },
    "X-Request-Timeout-Ms": {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "description": "Milliseconds after which the client no longer wants an answer.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 10**9},
    },
}
_HEADERS: dict[str, Any] = {
    "X-Request-Id": {"description": "The request's id.", "schema": _ID_SCHEMA},
    "Retry-After": {
        "description": "Seconds after which another try may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}},
}
