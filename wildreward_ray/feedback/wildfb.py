"""Records of WildFB, the dataset of the WildReward paper (arXiv 2602.08829), and of what others write in its shape.

A record is an object `id, history, text, messages, user_feedback, label`. What is rated is the last of `messages`, an
assistant's reply to the user message before it. `text` and `user_feedback` aren't looked at: a reward model is shown
messages alone, and never what the user said to the reply.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.conversation import ROLES
from wildreward_ray.feedback.message_text import MalformedConversationError, valid_text

_USER_FIELDS = ("user_id", "hashed_ip", "user")
# More digits than any label has; Python refuses to read texts of some thousand digits.
_WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")


def parse(record: Any, number: int) -> dict[str, Any]:
    """A row to train on, or the reason why a record can't be one.

    Args:
        record: what stood in the file, any JSON value.
        number: position of the record in its file; the row's id where the record has none.

    Returns:
        `row_id, history, prompt, response, label, user_id, language, origin, reason, detail`. `history` is a list of
        `{"role", "content"}`, `label` a whole number of any size, `origin` None. Of a row that can't be used, `reason` is
        `not_an_object`, `no_messages`, `message_without_content`, `wrong_roles`, `history_not_a_list`, `no_label`,
        `empty_prompt` or `empty_response`, `detail` tells the rest in one line, and the texts are empty and the label 0.
        Otherwise both are None. U+FFFD stands for lone surrogates, which JSON can hold and UTF-8 can't.

    Raises:
        UserError: a label that is no whole number. It says that the data are of another kind, not that a row is damaged.
    """
    if not isinstance(record, dict):
        return unusable(number, "not_an_object", f"the record is a {type(record).__name__}")
    row = {
        **unusable(number, "", ""),
        "row_id": _text(record, ("id",)) or str(number),
        "user_id": _text(record, _USER_FIELDS),
        "language": _text(record, ("language",)),
    }
    try:
        found = _content(record)
    except MalformedConversationError as e:
        return {**row, "reason": e.reason, "detail": str(e)}
    return {**row, **found, "label": _label(record["label"], row["row_id"]), "reason": None, "detail": None}


def unusable(number: int, reason: str, detail: str) -> dict[str, Any]:
    """The row, see `parse`, that stands for what no record could be read from."""
    return {
        "row_id": str(number),
        "history": [],
        "prompt": "",
        "response": "",
        "label": 0,
        "user_id": None,
        "language": None,
        "origin": None,
        "reason": reason,
        "detail": detail,
    }


def _content(record: dict[str, Any]) -> dict[str, Any]:
    """`history`, `prompt` and `response` of a record that has all that it needs."""
    raw = record.get("messages")
    if not isinstance(raw, list) or len(raw) < 2:
        raise MalformedConversationError("no_messages", "`messages` holds no request and reply")
    messages = _messages(raw, "messages")
    prompt, response = messages[-2:]
    if (prompt["role"], response["role"]) != ("user", "assistant"):
        roles = f"{prompt['role']}, {response['role']}"
        raise MalformedConversationError("wrong_roles", f"`messages` ends with {roles}: it must with user, assistant")
    history = _messages(_history(record.get("history")), "history")
    if record.get("label") is None:
        raise MalformedConversationError("no_label", "`label` is not there, or null")
    for message, name in ((prompt, "prompt"), (response, "response")):
        if not message["content"].strip():
            raise MalformedConversationError(f"empty_{name}", f"the {message['role']}'s last message is empty")
    return {"history": history + messages[:-2], "prompt": prompt["content"], "response": response["content"]}


def _history(value: Any) -> list[Any]:
    """The messages before `messages`; an empty text stands for none, as in files that were a table once."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise MalformedConversationError("history_not_a_list", f"`history` is {type(value).__name__}")
    return value


def _messages(raw: list[Any], field: str) -> list[dict[str, str]]:
    """Messages with a text each, under the roles of the normal form (`human` is a user, `gpt` an assistant)."""
    messages = []
    for position, message in enumerate(raw):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise MalformedConversationError(
                "message_without_content", f"message {position} of `{field}` has no text as `content`"
            )
        name = message.get("role")
        role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise MalformedConversationError(
                "wrong_roles", f"message {position} of `{field}` has role {reprlib.repr(name)}"
            )
        messages.append({"role": role, "content": valid_text(content, {})})
    return messages


def _label(value: Any, row_id: str) -> int:
    """A whole number, also where it is written as 3.0 or "3"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        return int(value)
    raise UserError(f"row {row_id!r} has label {reprlib.repr(value)}: labels are whole numbers", flag="--dataset")


def _text(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of some fields that holds a text or a whole number."""
    for name in names:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value:
            return valid_text(value, {})
    return None
