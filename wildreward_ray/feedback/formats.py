"""The shapes chat logs come in: one parser a format, from a raw record to a `Conversation`.

Every parser raises `MalformedConversationError` for a record without a message list, or with a message that can't be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from wildreward_ray.feedback.conversation import (
    Conversation,
    MalformedConversationError,
    content_hash,
    normalise,
)
from wildreward_ray.feedback.message_text import count, valid_text

Parser = Callable[[Mapping[str, Any]], Conversation]

# Seconds since 1970 stay below this for some thousand years; what is above it are milliseconds.
_MOST_SECONDS = 1e11


def parse_wildchat(record: Mapping[str, Any]) -> Conversation:
    """A row of WildChat: `conversation` is a list of messages, `hashed_ip` is the user.

    Its 1M and 4.8M schemas differ in fields that aren't looked at (https://huggingface.co/datasets/allenai/WildChat-4.8M);
    the first release calls its id `conversation_id`.
    """
    raw = _message_list(record, "conversation")
    oddities: dict[str, int] = {}
    messages = normalise(raw, oddities)
    return Conversation(
        conversation_id=_id(record, ("conversation_hash", "conversation_id"), oddities) or content_hash(messages),
        user_id=_id(record, ("hashed_ip",), oddities)
        or next((user for m in raw if (user := _id(m, ("hashed_ip",), oddities))), None),
        language=_text(record.get("language"), oddities),
        model=_text(record.get("model"), oddities),
        timestamp=_timestamp(record, ("timestamp",), oddities),
        messages=messages,
        toxic=bool(record.get("toxic")) or any(m.get("toxic") for m in raw),
        redacted=bool(record.get("redacted")) or any(m.get("redacted") for m in raw),
        oddities=oddities,
    )


def parse_lmsys(record: Mapping[str, Any]) -> Conversation:
    """A row of LMSYS-Chat-1M (https://huggingface.co/datasets/lmsys/lmsys-chat-1m). It names no user.

    A conversation is toxic when the moderation of any of its messages is flagged.
    """
    raw = _message_list(record, "conversation")
    oddities: dict[str, int] = {}
    messages = normalise(raw, oddities)
    moderation = record.get("openai_moderation")
    verdicts = moderation if isinstance(moderation, list) else []
    language = _text(record.get("language"), oddities)
    return Conversation(
        conversation_id=_id(record, ("conversation_id",), oddities) or content_hash(messages),
        user_id=None,
        language=None if language == "unknown" else language,
        model=_text(record.get("model"), oddities),
        timestamp=None,
        messages=messages,
        toxic=any(isinstance(v, Mapping) and bool(v.get("flagged")) for v in verdicts),
        redacted=bool(record.get("redacted")),
        oddities=oddities,
    )


def parse_sharegpt(record: Mapping[str, Any]) -> Conversation:
    """An object of ShareGPT's JSON: `{"id", "conversations": [{"from", "value"}, …]}`. It names no user."""
    raw = _message_list(record, "conversations", "items")
    oddities: dict[str, int] = {}
    messages = normalise([_renamed(m) for m in raw], oddities)
    return Conversation(
        conversation_id=_id(record, ("id",), oddities) or content_hash(messages),
        user_id=None,
        language=None,
        model=_text(record.get("model"), oddities),
        timestamp=None,
        messages=messages,
        oddities=oddities,
    )


def parse_openai(record: Mapping[str, Any]) -> Conversation:
    """An object `{"messages": [{"role", "content"}, …]}`, with what else there is of id, user, model, language and time."""
    raw = _message_list(record, "messages")
    oddities: dict[str, int] = {}
    messages = normalise(raw, oddities)
    return Conversation(
        conversation_id=_id(record, ("conversation_id", "id"), oddities) or content_hash(messages),
        user_id=_user(record, oddities),
        language=_text(record.get("language"), oddities),
        model=_text(record.get("model"), oddities),
        timestamp=_timestamp(record, ("timestamp", "created"), oddities),
        messages=messages,
        oddities=oddities,
    )


def parse_openai_logs(record: Mapping[str, Any]) -> Conversation:
    """A logged call of the chat API: `{"request": {"messages", …}, "response": {"choices", …}}`, or each below its `body`.

    Every call repeats the conversation, so a record carries the feedback of one turn: of the reply before its last user
    message. The id is a hash of the messages up to that feedback, so that a call that was retried, or goes on with tools,
    gives the same interaction again. The response has no feedback yet; one that failed does no harm.
    """
    _check_object(record)
    request, response = (_body(record.get(key)) for key in ("request", "response"))
    raw = _message_list(request, "messages")
    oddities: dict[str, int] = {}
    normalise(raw, {})  # A request that can't be used is an error, whatever the response is.
    messages = normalise([*raw, *_reply(response, oddities)], oddities)
    feedback = max((i for i, m in enumerate(messages) if m.role == "user"), default=len(messages) - 1)
    return Conversation(
        conversation_id=content_hash(messages[: feedback + 1]),
        user_id=_user(request, oddities) or _user(record, oddities),
        language=_text(record.get("language"), oddities),
        model=_text(response.get("model"), oddities) or _text(request.get("model"), oddities),
        timestamp=_timestamp(response, ("created",), oddities)
        or _timestamp(record, ("timestamp", "created"), oddities),
        messages=messages,
        oddities=oddities,
        only_last_turn=True,
    )


PARSERS: dict[str, Parser] = {
    "wildchat": parse_wildchat,
    "lmsys": parse_lmsys,
    "sharegpt": parse_sharegpt,
    "openai": parse_openai,
    "openai-logs": parse_openai_logs,
}


def _check_object(record: Any) -> None:
    if not isinstance(record, Mapping):
        raise MalformedConversationError("not_an_object", f"the record is a {type(record).__name__}")


def _message_list(record: Any, *names: str) -> list[Any]:
    """The list under the first of the names that is there."""
    _check_object(record)
    raw = next((record[name] for name in names if record.get(name) is not None), None)
    if not isinstance(raw, list) or not raw:
        raise MalformedConversationError("no_messages", f"`{names[0]}` is {type(raw).__name__} without messages")
    return raw


def _renamed(message: Any) -> Any:
    """A message of ShareGPT under the names that `normalise` knows; it reports what isn't a mapping."""
    if not isinstance(message, Mapping):
        return message
    if message.get("from") == "function_call":
        return {"role": "assistant", "content": None, "function_call": message.get("value")}
    return {"role": message.get("from"), "content": message.get("value")}


def _body(part: Any) -> Mapping[str, Any]:
    """A request or a response, from below `body` where the batch API puts it; empty where there is none."""
    if not isinstance(part, Mapping):
        return {}
    return part["body"] if isinstance(part.get("body"), Mapping) else part


def _reply(response: Mapping[str, Any], oddities: dict[str, int]) -> list[Mapping[str, Any]]:
    """The message of a response's first choice, if there is one that can be used."""
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        count(oddities, "no_response")
        return []
    reply = {"role": "assistant", **message}
    try:
        normalise([reply], {})
    except MalformedConversationError:
        count(oddities, "unusable_response")
        return []
    return [reply]


def _user(record: Mapping[str, Any], oddities: dict[str, int]) -> str | None:
    metadata = record.get("metadata")
    below = _id(metadata, ("user_id",), oddities) if isinstance(metadata, Mapping) else None
    return _id(record, ("user", "user_id"), oddities) or below


def _id(record: Mapping[str, Any], names: tuple[str, ...], oddities: dict[str, int]) -> str | None:
    """The first of some fields that holds a text or a whole number."""
    for name in names:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if text := _text(value, oddities):
            return text
    return None


def _text(value: Any, oddities: dict[str, int]) -> str | None:
    return valid_text(value, oddities) if isinstance(value, str) and value else None


def _timestamp(record: Mapping[str, Any], names: tuple[str, ...], oddities: dict[str, int]) -> str | None:
    """The first of some fields that holds a time; numbers are seconds or milliseconds since 1970."""
    value = next((record[name] for name in names if record.get(name) is not None), None)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            seconds = float(value)
            return str(datetime.fromtimestamp(seconds / 1000 if seconds > _MOST_SECONDS else seconds, UTC))
        except (OverflowError, ValueError, OSError):
            return str(value)
    return None if value is None else valid_text(str(value), oddities)
