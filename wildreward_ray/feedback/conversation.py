"""Raw chat messages -> a normal form, and the turns in it that carry feedback.

A *turn* is an assistant reply that has a user message before it and a user message after it: the message after it is the
feedback. In the normal form roles alternate, so a turn is known by the position of its reply. What an assistant does with
tools between two user messages is part of that one reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wildreward_ray.feedback.message_text import MalformedConversationError, count, text_of

__all__ = ["Conversation", "MalformedConversationError", "Message", "content_hash", "interaction_id", "normalise"]

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
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
TOOL_RESULT = "[tool result]"
_SHOWN_CHARACTERS = 40


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
        only_last_turn: whether earlier turns are other records' business: a log of API calls repeats them with every call.
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
    only_last_turn: bool = False

    def turns(self) -> list[int]:
        """Positions in `messages` of the replies that stand between two user messages.

        With `only_last_turn` none but the reply right before the last user message, if that is a turn.
        """
        roles = [m.role for m in self.messages]
        found = [
            i
            for i in range(1, len(roles) - 1)
            if roles[i] == "assistant" and roles[i - 1] == "user" and roles[i + 1] == "user"
        ]
        if not self.only_last_turn:
            return found
        return [i for i in found[-1:] if "user" not in roles[i + 2 :]]


def interaction_id(conversation_id: str, reply: int) -> str:
    """The stable id of an interaction: conversation and position of the reply in the normal form."""
    return f"{conversation_id}:{reply}"


def content_hash(messages: Iterable[Message]) -> str:
    """32 hex digits that depend on nothing but roles and texts."""
    digest = hashlib.blake2b(digest_size=16)
    for m in messages:
        digest.update(f"{m.role}\x00{m.content}\x01".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def normalise(raw: Iterable[Any], oddities: dict[str, int]) -> list[Message]:
    """Bring raw messages into the normal form.

    Empty messages are left out and neighbours of one role are joined by a blank line: two user messages in a row are one
    thing said, and a reply that was continued is one reply. Parts of a message that aren't text, calls of tools and their
    results become placeholders; results join the reply before or after them, and are left out where there is none. Counts
    of what was met are added to `oddities`.

    Args:
        raw: mappings with `role` and `content`.

    Raises:
        MalformedConversationError: a role that isn't known, or content that is neither text nor a list of parts.
    """
    runs: list[tuple[str, list[str]]] = []
    waiting = 0  # Tool results that nothing but a reply right after them can take up.
    for position, item in enumerate(raw):
        role = _role(item, position)
        if role == "tool":
            if runs and runs[-1][0] == "assistant":
                runs[-1][1].append(TOOL_RESULT)
                count(oddities, "tool_message")
            else:
                waiting += 1
            continue
        text = text_of(item, role, position, oddities)
        if not text:
            count(oddities, "empty_message")
            continue
        results = [TOOL_RESULT] * waiting if role == "assistant" else []
        count(oddities, "tool_message" if results else "stray_tool_message", waiting)
        waiting = 0
        if runs and runs[-1][0] == role:
            count(oddities, "merged_same_role")
            runs[-1][1].append(text)
        else:
            runs.append((role, [*results, text]))
    count(oddities, "stray_tool_message", waiting)
    if runs and runs[0][0] in ("assistant", "system"):
        count(oddities, f"{runs[0][0]}_first")
    return [Message(role, "\n\n".join(texts)) for role, texts in runs]


def _role(item: Any, position: int) -> str:
    if not isinstance(item, Mapping):
        raise MalformedConversationError("bad_message", f"message {position} is a {type(item).__name__}")
    name = item.get("role")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        shown = name[:_SHOWN_CHARACTERS] if isinstance(name, str) else type(name).__name__
        raise MalformedConversationError("unknown_role", f"message {position} has role {shown!r}")
    return role
