"""The shapes chat logs come in: one parser a format, from a raw record to a `Conversation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wildreward_ray.feedback.conversation import Conversation, MalformedConversationError, content_hash, normalise

Parser = Callable[[Mapping[str, Any]], Conversation]

# Columns that a WildChat-like Parquet file must have, and those that are read where present.
WILDCHAT_REQUIRED = ("conversation",)
WILDCHAT_OPTIONAL = ("conversation_hash", "hashed_ip", "language", "model", "timestamp", "toxic", "redacted")


def parse_wildchat(record: Mapping[str, Any]) -> Conversation:
    """A row of WildChat's Parquet schema: `conversation` is a list of messages, `hashed_ip` is the user.

    Raises:
        MalformedConversationError: no message list, or a message that can't be used.
    """
    raw = record.get("conversation")
    if not isinstance(raw, list) or not raw:
        raise MalformedConversationError("no_messages", f"`conversation` is {type(raw).__name__} without messages")
    oddities: dict[str, int] = {}
    messages = normalise(raw, oddities)
    timestamp = record.get("timestamp")
    return Conversation(
        conversation_id=_text(record.get("conversation_hash")) or content_hash(messages),
        user_id=_text(record.get("hashed_ip")) or _first_text(raw, "hashed_ip"),
        language=_text(record.get("language")),
        model=_text(record.get("model")),
        timestamp=None if timestamp is None else str(timestamp),
        messages=messages,
        toxic=bool(record.get("toxic")) or any(m.get("toxic") for m in raw),
        redacted=bool(record.get("redacted")) or any(m.get("redacted") for m in raw),
        oddities=oddities,
    )


def parse_sharegpt(record: Mapping[str, Any]) -> Conversation:
    """An object of ShareGPT's JSON: `{"id", "conversations": [{"from", "value"}, …]}`. It names no user.

    Raises:
        MalformedConversationError: no message list, or a message that can't be used.
    """
    if not isinstance(record, Mapping):
        raise MalformedConversationError("not_an_object", f"the record is a {type(record).__name__}")
    raw = record.get("conversations", record.get("items"))
    if not isinstance(raw, list):
        raise MalformedConversationError("no_messages", f"`conversations` is {type(raw).__name__}, not a list")
    if not raw:
        raise MalformedConversationError("no_messages", "`conversations` is an empty list")
    oddities: dict[str, int] = {}
    renamed = [
        {"role": m.get("from"), "content": m.get("value")} if isinstance(m, Mapping) else m  # normalise() reports it
        for m in raw
    ]
    messages = normalise(renamed, oddities)
    return Conversation(
        conversation_id=_text(record.get("id")) or content_hash(messages),
        user_id=None,
        language=None,
        model=_text(record.get("model")),
        timestamp=None,
        messages=messages,
        oddities=oddities,
    )


PARSERS: dict[str, Parser] = {"wildchat": parse_wildchat, "sharegpt": parse_sharegpt}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _first_text(raw: list[Mapping[str, Any]], key: str) -> str | None:
    return next((text for m in raw if isinstance(m, Mapping) and (text := _text(m.get(key)))), None)
