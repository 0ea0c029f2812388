"""Raw chat messages -> a normal form, and the turns in it that carry feedback.

A *turn* is an assistant reply that has a user message before it and a user message after it: the message after it is the
feedback. In the normal form roles alternate, so a turn is known by the position of its reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}


class MalformedConversationError(ValueError):
    """A conversation that can't be used. `reason` is a short stable word for counting, the message tells the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the normal form."""

    role: str
    content: str


@dataclass(slots=True)
class Conversation:
    """A conversation in normal form.

    Attributes:
        conversation_id: the log's own id, or a hash of the content where it has none.
        user_id: who wrote the user messages, as far as the log tells; None where it doesn't.
        messages: no two neighbours have the same role; empty messages are gone.
        toxic, redacted: whether the log flags any message so.
        oddities: what normalisation met, by name, for the funnel's notes.
    """

    conversation_id: str
    user_id: str | None
    language: str | None
    model: str | None
    timestamp: str | None
    messages: list[Message]
    toxic: bool = False
    redacted: bool = False
    oddities: dict[str, int] = field(default_factory=dict)

    def turns(self) -> list[int]:
        """Positions in `messages` of the replies that stand between two user messages."""
        roles = [m.role for m in self.messages]
        return [
            i
            for i in range(1, len(roles) - 1)
            if roles[i] == "assistant" and roles[i - 1] == "user" and roles[i + 1] == "user"
        ]


def interaction_id(conversation_id: str, reply: int) -> str:
    """The stable id of an interaction: conversation and position of the reply in the normal form."""
    return f"{conversation_id}:{reply}"


def content_hash(messages: Iterable[Message]) -> str:
    """32 hex digits that depend on nothing but roles and texts."""
    digest = hashlib.blake2b(digest_size=16)
    for m in messages:
        digest.update(f"{m.role}\x00{m.content}\x01".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def normalise(raw: Iterable[Mapping[str, Any]], oddities: dict[str, int]) -> list[Message]:
    """Bring raw messages into the normal form.

    Empty messages are left out and neighbours of one role are joined by a blank line: two user messages in a row are one
    thing said, and a reply that was continued is one reply. Counts of what was met are added to `oddities`.

    Args:
        raw: mappings with `role` and `content`.

    Raises:
        MalformedConversationError: a role that isn't known, or content that isn't text.
    """
    messages: list[Message] = []
    for position, item in enumerate(raw):
        if not isinstance(item, Mapping):
            raise MalformedConversationError("bad_message", f"message {position} is a {type(item).__name__}")
        name = item.get("role")
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise MalformedConversationError("unknown_role", f"message {position} has role {name!r}")
        content = item.get("content")
        if content is None:
            content = ""
        if not isinstance(content, str):
            raise MalformedConversationError("content_not_text", f"message {position} holds {type(content).__name__}")
        content = content.strip()
        if not content:
            _count(oddities, "empty_message")
        elif messages and messages[-1].role == role:
            _count(oddities, "merged_same_role")
            messages[-1] = Message(role, f"{messages[-1].content}\n\n{content}")
        else:
            messages.append(Message(role, content))
    if messages and messages[0].role == "assistant":
        _count(oddities, "assistant_first")
    if messages and messages[0].role == "system":
        _count(oddities, "system_first")
    return messages


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
