"""WildChat rows and ShareGPT objects become the same conversations, and what can't be used says why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from wildreward_ray.feedback.conversation import MalformedConversationError
from wildreward_ray.feedback.formats import PARSERS, parse_sharegpt, parse_wildchat

TEXTS = ["How do I sort a list?", "Use sorted().", "Thanks!"]


def wildchat(**changes: Any) -> dict[str, Any]:
    roles = ["user", "assistant", "user"]
    messages = [
        {"role": role, "content": text, "hashed_ip": f"ip-{role}", "toxic": False, "redacted": False}
        for role, text in zip(roles, TEXTS, strict=True)
    ]
    row = {
        "conversation_hash": "h1",
        "hashed_ip": "ip-row",
        "language": "English",
        "model": "gpt-4",
        "timestamp": datetime(2023, 4, 1, tzinfo=UTC),
        "toxic": False,
        "redacted": False,
        "conversation": messages,
    }
    return {**row, **changes}


def sharegpt(**changes: Any) -> dict[str, Any]:
    speakers = ["human", "gpt", "human"]
    messages = [{"from": who, "value": text} for who, text in zip(speakers, TEXTS, strict=True)]
    return {"id": "s1", "conversations": messages, **changes}


def test_both_formats_give_the_same_messages_and_turns() -> None:
    one, other = parse_wildchat(wildchat()), parse_sharegpt(sharegpt())
    assert one.messages == other.messages
    assert [m.content for m in one.messages] == TEXTS
    assert one.turns() == other.turns() == [1]


def test_wildchat_row_keeps_who_when_and_what() -> None:
    found = parse_wildchat(wildchat())
    assert (found.conversation_id, found.user_id, found.language, found.model) == ("h1", "ip-row", "English", "gpt-4")
    assert found.timestamp == "2023-04-01 00:00:00+00:00"
    assert (found.toxic, found.redacted) == (False, False)


def test_user_is_looked_for_in_the_messages_where_the_row_names_none() -> None:
    assert parse_wildchat(wildchat(hashed_ip=None)).user_id == "ip-user"
    bare = [{"role": m["role"], "content": m["content"]} for m in wildchat()["conversation"]]
    assert parse_wildchat(wildchat(hashed_ip=None, conversation=bare)).user_id is None


@pytest.mark.parametrize("flag", ["toxic", "redacted"])
def test_flag_on_the_row_or_on_any_message_flags_the_conversation(flag: str) -> None:
    assert getattr(parse_wildchat(wildchat(**{flag: True})), flag)
    marked = wildchat()
    marked["conversation"][2][flag] = True
    assert getattr(parse_wildchat(marked), flag)


def test_row_with_nothing_but_messages_is_enough() -> None:
    found = parse_wildchat({"conversation": wildchat()["conversation"]})
    assert found.turns() == [1]
    assert (found.language, found.model, found.timestamp) == (None, None, None)


@pytest.mark.parametrize("absent", [None, ""])
def test_record_without_id_gets_one_from_its_content(absent: str | None) -> None:
    one, same = parse_wildchat(wildchat(conversation_hash=absent)), parse_sharegpt(sharegpt(id=absent))
    assert one.conversation_id == same.conversation_id
    changed = sharegpt(id=absent)
    changed["conversations"][0]["value"] += "?"
    assert parse_sharegpt(changed).conversation_id != one.conversation_id


def test_older_sharegpt_name_of_the_messages_is_read() -> None:
    assert parse_sharegpt({"id": "s", "items": sharegpt()["conversations"]}).turns() == [1]


def test_oddities_reach_the_conversation() -> None:
    raw = sharegpt()
    raw["conversations"].insert(0, {"from": "system", "value": "s"})
    raw["conversations"].insert(2, {"from": "human", "value": "more"})
    assert parse_sharegpt(raw).oddities == {"system_first": 1, "merged_same_role": 1}


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("wildchat", {}, "no_messages"),
        ("wildchat", {"conversation": []}, "no_messages"),
        ("wildchat", {"conversation": "hello"}, "no_messages"),
        ("wildchat", {"conversation": [None]}, "bad_message"),
        ("wildchat", {"conversation": [{"role": "alien", "content": "x"}]}, "unknown_role"),
        ("sharegpt", [1, 2], "not_an_object"),
        ("sharegpt", "text", "not_an_object"),
        ("sharegpt", None, "not_an_object"),
        ("sharegpt", {"id": "s"}, "no_messages"),
        ("sharegpt", {"conversations": {}}, "no_messages"),
        ("sharegpt", {"conversations": []}, "no_messages"),
        ("sharegpt", {"conversations": ["x"]}, "bad_message"),
        ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "content_not_text"),
        ("sharegpt", {"conversations": [{"value": "x"}]}, "unknown_role"),
    ],
)
def test_record_that_cannot_be_used_says_why(format: str, record: Any, reason: str) -> None:
    with pytest.raises(MalformedConversationError) as caught:
        PARSERS[format](record)
    assert caught.value.reason == reason
