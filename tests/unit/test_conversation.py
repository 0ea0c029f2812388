"""Oddities of chat logs, which replies count as turns, and ids that stay the same."""

from __future__ import annotations

import pickle
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


def test_reply_that_touches_a_system_message_is_no_turn() -> None:
    assert conversation(("user", "a"), ("system", "x"), ("assistant", "b"), ("user", "c"))[0].turns() == []
    assert conversation(("user", "a"), ("assistant", "b"), ("developer", "x"), ("user", "c"))[0].turns() == []


def test_role_names_of_known_logs_are_understood_in_any_case() -> None:
    found, _ = conversation(("Human", "a"), ("GPT", "b"), ("prompter", "c"), ("ChatGPT", "d"), (" Developer ", "e"))
    assert [m.role for m in found.messages] == ["user", "assistant", "user", "assistant", "system"]


# --- tools


def test_what_the_assistant_does_with_tools_between_two_user_messages_is_one_reply_and_a_turn() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "search"}}]}
    log = [*raw(("user", "a")), call, *raw(("tool", "hits"), ("assistant", "b"), ("user", "c"))]
    oddities: dict[str, int] = {}
    messages = normalise(log, oddities)
    assert messages == [
        Message("user", "a"),
        Message("assistant", "[tool call: search]\n\n[tool result]\n\nb"),
        Message("user", "c"),
    ]
    assert Conversation("c", None, None, None, None, messages).turns() == [1]
    assert oddities == {"tool_call": 1, "tool_message": 1, "merged_same_role": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"tool_calls": [{"function": {"name": "f"}}, {"custom": {"name": "g"}}]},
        {"tool_calls": [{"name": "f"}], "function_call": {"name": "g", "arguments": "{}"}},
    ],
)
def test_every_call_is_named_beside_what_the_assistant_said(given: dict[str, Any]) -> None:
    oddities: dict[str, int] = {}
    (message,) = normalise([{"role": "assistant", "content": "Let me see.", **given}], oddities)
    assert message.content == "Let me see.\n[tool call: f]\n[tool call: g]"
    assert oddities == {"tool_call": 2, "assistant_first": 1}


def test_result_whose_call_the_log_hides_belongs_to_the_reply_after_it() -> None:
    found, oddities = conversation(("user", "a"), ("tool", {"any": "type"}), ("assistant", "b"), ("user", "c"))
    assert [m.content for m in found.messages] == ["a", "[tool result]\n\nb", "c"]
    assert found.turns() == [1]
    assert oddities == {"tool_message": 1}


def test_result_without_a_reply_beside_it_is_left_out_and_counted() -> None:
    found, oddities = conversation(("tool", "x"), ("user", "a"), ("function", "y"), ("user", "b"), ("tool", "z"))
    assert [m.content for m in found.messages] == ["a\n\nb"]
    assert oddities == {"stray_tool_message": 3, "merged_same_role": 1}


# --- contents that aren't one text


def test_parts_that_are_no_text_leave_a_placeholder_where_they_stood() -> None:
    kinds = ["image_url", "input_image", "input_audio", "file", "video_url", "hologram"]
    parts = [{"type": "text", "text": "Look:"}, *({"type": kind, kind: {"url": "x"}} for kind in kinds), "and say"]
    found, oddities = conversation(("user", parts))
    expected = "Look:\n[image]\n[image]\n[audio]\n[file]\n[video]\n[hologram]\nand say"
    assert found.messages == [Message("user", expected)]
    assert oddities == {"multimodal_part": 6}


def test_parts_of_text_and_refusals_are_text() -> None:
    parts = [
        {"type": "input_text", "text": "a"},
        {"type": "output_text", "text": "b"},
        {"type": "refusal", "refusal": "I can't."},
        {"type": "text", "text": {"value": "d"}},
        {"text": "e"},
        {"type": "text", "text": None},
    ]
    found, oddities = conversation(("assistant", parts))
    assert found.messages == [Message("assistant", "a\nb\nI can't.\nd\ne")]
    assert oddities == {"assistant_first": 1}
    (refusal,) = normalise([{"role": "assistant", "content": None, "refusal": "No."}], {})
    assert refusal.content == "No."


def test_half_a_surrogate_pair_is_replaced_and_counted_so_that_the_text_is_utf8() -> None:
    found, oddities = conversation(("user", "a\ud83d \U0001f600\udc00"), ("assistant", "b\x00"))
    assert [m.content for m in found.messages] == ["a\ufffd \U0001f600\ufffd", "b\x00"]
    assert oddities == {"bad_unicode": 1}


# --- records that repeat earlier turns


def last_turn(*roles: str) -> list[int]:
    messages = [Message(role, "x") for role in roles]
    return Conversation("c", None, None, None, None, messages, only_last_turn=True).turns()


def test_only_the_turn_before_the_last_user_message_is_given_where_earlier_ones_are_repeated() -> None:
    assert last_turn("user", "assistant", "user", "assistant", "user") == [3]
    assert last_turn("user", "assistant", "user", "assistant", "user", "assistant") == [3]


def test_a_record_whose_newest_user_message_answers_no_reply_gives_none_of_the_older_turns() -> None:
    assert last_turn("user", "assistant", "user", "system", "user") == []
    assert last_turn("user", "assistant") == []
    assert last_turn() == []


def test_conversation_of_3000_turns_has_3000() -> None:
    found, oddities = conversation(*[("user", "a"), ("assistant", "b")] * 3000, ("user", "c"))
    assert found.turns() == list(range(1, 6001, 2))
    assert oddities == {}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "narrator", "content": "x"}, "unknown_role"),
        ({"role": None, "content": "x"}, "unknown_role"),
        ({"content": "x"}, "unknown_role"),
        ({"role": ["user"], "content": "x"}, "unknown_role"),
        ({"role": "user", "content": {"parts": ["x"]}}, "content_not_text"),
        ({"role": "user", "content": [["x"]]}, "content_not_text"),
        ({"role": "user", "content": [{"url": "x"}]}, "content_not_text"),
        ({"role": "user", "content": [{"type": 7}]}, "content_not_text"),
        ({"role": "user", "content": [{"type": "text", "text": 7}]}, "content_not_text"),
        ({"role": "assistant", "content": "x", "tool_calls": "search"}, "bad_tool_call"),
        ({"role": "user", "content": 0}, "content_not_text"),
        ("x", "bad_message"),
        (None, "bad_message"),
    ],
)
def test_unusable_message_is_an_error_with_its_reason_and_position(message: Any, reason: str) -> None:
    with pytest.raises(MalformedConversationError, match="message 1 ") as caught:
        normalise([{"role": "user", "content": "a"}, message], {})
    assert caught.value.reason == reason


def test_error_crosses_process_borders_with_its_reason() -> None:
    error = pickle.loads(pickle.dumps(MalformedConversationError("unknown_role", "message 3 has role 'x'")))
    assert (error.reason, str(error)) == ("unknown_role", "message 3 has role 'x'")


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
