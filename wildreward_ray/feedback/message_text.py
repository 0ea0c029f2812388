"""The text of one raw chat message, with placeholders for what isn't text.

Shapes are those of the OpenAI chat API (https://platform.openai.com/docs/api-reference/chat), which most logs follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# By the first word of a part's type that is known: `image_url` and `input_image` are images.
_KINDS = {"image": "image", "audio": "audio", "video": "video", "file": "file", "document": "file"}
_TEXT_TYPES = {"text", "input_text", "output_text"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAME_CHARACTERS = 80


class MalformedConversationError(ValueError):
    """A conversation that can't be used. `reason` is a short stable word for counting, the message tells the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (MalformedConversationError, (self.reason, str(self)))


def count(counts: dict[str, int], name: str, number: int = 1) -> None:
    """Add to a counter; nothing where nothing was met."""
    if number:
        counts[name] = counts.get(name, 0) + number


def valid_text(text: str, oddities: dict[str, int]) -> str:
    """A text without lone surrogates, which JSON can hold and UTF-8 can't: U+FFFD stands for each."""
    if text.isascii():
        return text
    mended, found = _SURROGATE.subn("\ufffd", text)
    count(oddities, "bad_unicode", int(found > 0))
    return mended


def text_of(message: Mapping[str, Any], role: str, position: int, oddities: dict[str, int]) -> str:
    """What a message says, stripped; empty where it says nothing.

    Args:
        role: in the normal form. Calls of tools are looked for in the assistant's messages.
        position: of the message, for errors.
        oddities: counts are added to it.

    Raises:
        MalformedConversationError: content that is neither text nor a list of parts, or calls that aren't a list.
    """
    content = message.get("content")
    pieces = [] if content is None else [content] if isinstance(content, str) else _parts(content, position, oddities)
    if role == "assistant":
        pieces += [text for text in [message.get("refusal")] if isinstance(text, str)]
        pieces += _tool_calls(message, position, oddities)
    said = (piece.strip() for piece in pieces)
    return valid_text("\n".join(piece for piece in said if piece), oddities)


def _parts(content: Any, position: int, oddities: dict[str, int]) -> list[str]:
    if not isinstance(content, list):
        raise MalformedConversationError("content_not_text", f"message {position} holds {type(content).__name__}")
    texts = []
    for part in content:
        text = _text_of_part(part)
        if text is None:
            text = _placeholder(part, position)
            count(oddities, "multimodal_part")
        texts.append(text)
    return texts


def _text_of_part(part: Any) -> str | None:
    """The text of a part of text, None for other parts."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and (kind is None or kind in ("refusal", *_TEXT_TYPES)):
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        text = text.get("value") if isinstance(text, Mapping) else text
        if isinstance(text, str):
            return text
        if text is None and kind is not None:
            return ""
    return None


def _placeholder(part: Any, position: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind in _TEXT_TYPES:
        what = f"type {kind!r} without text" if isinstance(kind, str) else "neither type nor text"
        raise MalformedConversationError("content_not_text", f"message {position} holds a part of {what}")
    known = (_KINDS[word] for word in kind.lower().split("_") if word in _KINDS)
    return f"[{next(known, kind[:_NAME_CHARACTERS])}]"


def _tool_calls(message: Mapping[str, Any], position: int, oddities: dict[str, int]) -> list[str]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise MalformedConversationError("bad_tool_call", f"message {position} has calls as {type(calls).__name__}")
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    count(oddities, "tool_call", len(calls))
    return [_call(call) for call in calls]


def _call(call: Any) -> str:
    """A placeholder with the name of the function, wherever in the call it stands."""
    holders = [call, *(call.get(key) for key in ("function", "custom"))] if isinstance(call, Mapping) else []
    names = (holder.get("name") for holder in holders if isinstance(holder, Mapping))
    name = next((n for n in names if isinstance(n, str) and n), None)
    return f"[tool call: {name[:_NAME_CHARACTERS]}]" if name else "[tool call]"
