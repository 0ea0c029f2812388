"""Oddities of chat logs, which replies count as turns, and ids that stay the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from wildreward_ray.feedback.conversation import (
    Conversation,
    MalformedConversationError,
    Message,
    content_hash,
    interaction_id,
    normalise,
)


def raw(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def conversation(*pairs: tuple[str, Any]) -> tuple[Conversation, dict[str, int]]:
    oddities: dict[str, int] = {}
    messages = normalise(raw(*pairs), oddities)
    return Conversation("c", None, None, None, None, messages), oddities


def test_plain_conversation_has_a_turn_for_every_reply_that_is_answered() -> None:
    found, oddities = conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"))
    assert found.turns() == [1, 3]
    assert oddities == {}


def test_last_reply_without_a_next_user_message_is_no_turn() -> None:
    assert conversation(("user", "a"), ("assistant", "b"))[0].turns() == []
    assert conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))[0].turns() == [1]


def test_trailing_user_message_is_feedback_and_starts_no_turn() -> None:
    assert conversation(("user", "a"), ("assistant", "b"), ("user", "c"))[0].turns() == [1]


def test_greeting_of_the_assistant_is_no_turn() -> None:
    found, oddities = conversation(("assistant", "hi"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert found.turns() == [2]
    assert oddities == {"assistant_first": 1}


def test_two_user_messages_in_a_row_are_one_thing_said() -> None:
    found, oddities = conversation(("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"), ("user", "e"))
    assert found.messages == [Message("user", "a\n\nb"), Message("assistant", "c"), Message("user", "d\n\ne")]
    assert found.turns() == [1]
    assert oddities == {"merged_same_role": 2}


def test_continued_reply_is_one_reply() -> None:
    found, _ = conversation(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"))
    assert found.messages[1] == Message("assistant", "b\n\nc")
    assert found.turns() == [1]


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_empty_message_is_left_out_and_its_neighbours_meet(empty: str | None) -> None:
    found, oddities = conversation(
        ("user", "a"), ("assistant", empty), ("user", "b"), ("assistant", "c"), ("user", "d")
    )
    assert [m.content for m in found.messages] == ["a\n\nb", "c", "d"]
    assert found.turns() == [1]
    assert oddities == {"empty_message": 1, "merged_same_role": 1}


def test_nothing_but_empty_messages_gives_no_turn_and_no_error() -> None:
    found, oddities = conversation(("user", ""), ("assistant", " "))
    assert (found.messages, found.turns()) == ([], [])
    assert oddities == {"empty_message": 2}


def test_system_message_in_front_is_kept_and_is_nobodys_request() -> None:
    found, oddities = conversation(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert found.turns() == [2]
    assert oddities == {"system_first": 1}
    assert conversation(("system", "s"), ("assistant", "b"), ("user", "c"))[0].turns() == []


@pytest.mark.parametrize("between", ["system", "tool"])
def test_reply_that_touches_something_else_than_two_user_messages_is_no_turn(between: str) -> None:
    assert conversation(("user", "a"), (between, "x"), ("assistant", "b"), ("user", "c"))[0].turns() == []
    assert conversation(("user", "a"), ("assistant", "b"), (between, "x"), ("user", "c"))[0].turns() == []


def test_role_names_of_known_logs_are_understood_in_any_case() -> None:
    found, _ = conversation(("Human", "a"), ("GPT", "b"), ("prompter", "c"), ("ChatGPT", "d"))
    assert [m.role for m in found.messages] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "narrator", "content": "x"}, "unknown_role"),
        ({"role": None, "content": "x"}, "unknown_role"),
        ({"content": "x"}, "unknown_role"),
        ({"role": "user", "content": ["x"]}, "content_not_text"),
        ({"role": "user", "content": 0}, "content_not_text"),
        ("x", "bad_message"),
        (None, "bad_message"),
    ],
)
def test_unusable_message_is_an_error_with_its_reason_and_position(message: Any, reason: str) -> None:
    with pytest.raises(MalformedConversationError, match="message 1 ") as caught:
        normalise([{"role": "user", "content": "a"}, message], {})
    assert caught.value.reason == reason


def test_interaction_ids_do_not_depend_on_what_was_read_before() -> None:
    logs = [[("user", f"u{i}"), ("assistant", "r"), ("user", "n")] * 3 for i in range(20)]

    def ids(order: list[int]) -> dict[int, list[str]]:
        found = {}
        for i in order:
            item, _ = conversation(*logs[i])
            found[i] = [interaction_id(content_hash(item.messages), reply) for reply in item.turns()]
        return found

    shuffled = random.Random(0).sample(range(20), 20)
    first = ids(list(range(20)))
    assert ids(shuffled) == first
    assert ids([7]) == {7: first[7]}
    assert len({one for many in first.values() for one in many}) == 20 * 3


def test_hash_tells_apart_role_text_and_message_borders() -> None:
    variants = [
        [Message("user", "ab"), Message("assistant", "c")],
        [Message("user", "a"), Message("assistant", "bc")],
        [Message("assistant", "ab"), Message("user", "c")],
        [Message("user", "ab"), Message("assistant", "c"), Message("user", "")],
    ]
    assert len({content_hash(v) for v in variants}) == len(variants)


def test_hash_is_the_same_in_every_release() -> None:
    assert content_hash([Message("user", "a"), Message("assistant", "b")]) == "860c5788db3a96e37cf47b5005136203"


def test_hash_takes_text_that_is_not_valid_unicode() -> None:
    assert len(content_hash([Message("user", "\ud83d")])) == 32
