"""Reading a request body: JSON that means one thing only, then the fields of a model, and an error that says where.

Bodies must be I-JSON (RFC 7493). Of `{"response": "a", "response": "b"}` parsers read one or the other, so a reward for it
would be a guess; a lone surrogate such as `"\\ud800"` is no text that a tokenizer can read; NaN is no JSON at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from wildreward_ray.core.errors import nearest
from wildreward_ray.core.service import Conversation, ServiceError
from wildreward_ray.core.wire import ChatMessage, FieldError, split_conversation

Model = TypeVar("Model", bound=BaseModel)

MESSAGES: TypeAdapter[list[ChatMessage]] = TypeAdapter(list[ChatMessage])

# Only an escape, `\ud800` to `\udfff`, can make a surrogate: UTF-8 has no bytes for one.
_SURROGATE_ESCAPES = (b"\\ud", b"\\uD")
_LONGEST_NAME = 80
# pydantic's words for these name the Python class behind the field.
_PLAIN_WORDS = {
    "model_type": "a JSON object is needed",
    "dict_type": "a JSON object is needed",
    "list_type": "a list is needed",
    "string_type": "a string is needed",
    "missing": "this field is needed",
}
_CODES = {"missing": "missing_field", "extra_forbidden": "unknown_field"}


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body.

    Raises:
        ServiceError: 400 for what isn't UTF-8 or JSON; 422 for a JSON value that isn't an object, for a key that comes twice
            in one object, and for text that isn't Unicode.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ServiceError(400, "not_utf8", f"byte {e.start} of the body is not UTF-8") from e
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        raise ServiceError(
            400, "malformed_json", f"the body is not JSON: {e.msg} at line {e.lineno} column {e.colno}"
        ) from e
    except RecursionError as e:
        raise ServiceError(400, "malformed_json", "the body's JSON is nested too deeply") from e
    except ValueError as e:
        raise ServiceError(400, "malformed_json", "the body's JSON holds a number of too many digits") from e
    if not isinstance(value, dict):
        raise ServiceError(422, "invalid_field", "the body is no JSON object")
    if any(escape in body for escape in _SURROGATE_ESCAPES):
        _check_unicode(value)
    return value


def read_model(model: type[Model], body: bytes) -> Model:
    """`body` as `model`, a model in strict mode.

    Raises:
        ServiceError: as `read_object`; 422 with the first field that breaks a rule of `model`.
    """
    value = read_object(body)
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise _refusal(e, known=model.model_fields) from e


def texts(value: Any, field: str) -> tuple[str, ...]:
    """A string, or the strings of a list that isn't empty.

    Raises:
        ServiceError: 422, for anything else.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        refuse(field, "a string or a list of strings is needed")
    if not value:
        refuse(field, "the list is empty")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            refuse(f"{field}[{index}]", "a string is needed")
    return tuple(value)


def conversation(messages: Any, field: str, response: str | None = None) -> Conversation:
    """Chat messages as a conversation: those that end with the reply, or those before `response`.

    Raises:
        ServiceError: 422, for what is no list of messages or ends with other roles than user and assistant.
    """
    try:
        checked = MESSAGES.validate_python(messages)
    except ValidationError as e:
        raise _refusal(e, prefix=field) from e
    if response is not None:
        checked.append(ChatMessage(role="assistant", content=response))
    try:
        return split_conversation(checked)
    except FieldError as e:
        refuse(field, e.problem)


def refuse(field: str, why: str) -> NoReturn:
    """Refuse the value of `field`.

    Raises:
        ServiceError: 422 `invalid_field`.
    """
    raise ServiceError(422, "invalid_field", f"{field}: {why}", field=field)


def only(*allowed: Any, why: str) -> BeforeValidator:
    """Refuses an option of another protocol whose value the service can't honour, and says why."""

    def check(value: Any) -> Any:
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        met = repr(value) if isinstance(value, bool | int | float) else f"a {_json_type(value)}"
        raise FieldError(f"{met} is not supported: {why}", "unsupported_option")

    return BeforeValidator(check)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = _shown(name)
                raise ServiceError(422, "duplicate_key", f"the key {shown!r} comes twice in one object", field=shown)
            seen.add(name)
    return found


def _no_constant(name: str) -> NoReturn:
    raise ServiceError(400, "malformed_json", f"the body is not JSON: {name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _check_unicode(value: Any) -> None:
    """Raise a `ServiceError` (422) that names the first text holding a lone surrogate."""
    rest: list[tuple[str, Any]] = [("", value)]
    while rest:
        path, one = rest.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError as e:
                problem = f"{path}: character {e.start} is a lone surrogate, which is no text"
                raise ServiceError(422, "lone_surrogate", problem, field=path) from e
        elif isinstance(one, dict):
            rest += [(_shown(key), key) for key in one]
            rest += [(f"{path}.{_shown(key)}" if path else _shown(key), part) for key, part in one.items()]
        elif isinstance(one, list):
            rest += [(f"{path}[{index}]", part) for index, part in enumerate(one)]


def _refusal(error: ValidationError, *, known: Iterable[str] = (), prefix: str = "") -> ServiceError:
    found = error.errors(include_url=False, include_input=False)
    first: Mapping[str, Any] = found[0]
    field = _field(first["loc"], prefix)
    detail = f"{field}: {_words(first, known)}" if field else _words(first, known)
    if len(found) > 1:
        detail += f" ({len(found) - 1} more errors)"
    broken = _own(first)
    code = broken.code if broken else _CODES.get(first["type"], "invalid_field")
    return ServiceError(422, code, detail, field=field or None)


def _own(error: Mapping[str, Any]) -> FieldError | None:
    cause = error.get("ctx", {}).get("error")
    return cause if isinstance(cause, FieldError) else None


def _words(error: Mapping[str, Any], known: Iterable[str]) -> str:
    kind, place = error["type"], error["loc"]
    if broken := _own(error):
        return broken.problem
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(place[-1]), known)}" if len(place) == 1 else "unknown key"
    if kind == "too_short":
        return "the list is empty"
    return _PLAIN_WORDS.get(kind) or str(error["msg"])


def _field(place: Sequence[str | int], prefix: str) -> str:
    field = prefix
    for part in place:
        if isinstance(part, int):
            field += f"[{part}]"
        else:
            field += f".{_shown(part)}" if field else _shown(part)
    return field


def _shown(name: str) -> str:
    """A key of the client's as it may stand in an error: short, and text in any encoding."""
    safe = name.encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= _LONGEST_NAME else f"{safe[:_LONGEST_NAME]}…"


def _json_type(value: Any) -> str:
    return {dict: "object", list: "list", str: "string", type(None): "null"}.get(type(value), type(value).__name__)
