"""Every format gives the same conversations, calls of an API give each interaction once, and what can't be used says why."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from wildreward_ray.cluster.records import FORMATS
from wildreward_ray.feedback.conversation import MalformedConversationError, interaction_id
from wildreward_ray.feedback.formats import (
    PARSERS,
    parse_lmsys,
    parse_openai,
    parse_openai_logs,
    parse_sharegpt,
    parse_wildchat,
)

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


def openai(**changes: Any) -> dict[str, Any]:
    roles = ["user", "assistant", "user"]
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, TEXTS, strict=True)], **changes}


def lmsys(**changes: Any) -> dict[str, Any]:
    return {
        "conversation_id": "l1",
        "model": "vicuna-13b",
        "conversation": openai()["messages"],
        "turn": 1,
        "language": "English",
        "openai_moderation": [{"categories": {"hate": False}, "flagged": False}] * 3,
        "redacted": False,
        **changes,
    }


def call(said: list[dict[str, Any]], reply: str | None, **request: Any) -> dict[str, Any]:
    """A logged API call; without a reply it failed."""
    answer: dict[str, Any] = {"error": {"message": "overloaded"}}
    if reply is not None:
        message = {"role": "assistant", "content": reply}
        answer = {
            "id": f"chatcmpl-{reply}",
            "created": 1_700_000_000,
            "model": "m-1",
            "choices": [{"message": message}],
        }
    return {"request": {"model": "m", "messages": said, **request}, "response": answer}


def test_every_format_that_is_read_has_a_parser() -> None:
    assert tuple(PARSERS) == FORMATS


def test_all_formats_give_the_same_messages_and_turns() -> None:
    logged = call(openai()["messages"], None)
    records = {
        "wildchat": wildchat(),
        "lmsys": lmsys(),
        "sharegpt": sharegpt(),
        "openai": openai(),
        "openai-logs": logged,
    }
    for format, parse in PARSERS.items():
        found = parse(records[format])
        assert [m.content for m in found.messages] == TEXTS, format
        assert [m.role for m in found.messages] == ["user", "assistant", "user"], format
        assert found.turns() == [1], format


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


def test_first_wildchat_release_calls_its_id_conversation_id() -> None:
    assert parse_wildchat({"conversation_id": "w0", "conversation": wildchat()["conversation"]}).conversation_id == "w0"


def test_lmsys_row_keeps_what_it_has() -> None:
    found = parse_lmsys(lmsys(redacted=True))
    assert (found.conversation_id, found.user_id, found.language, found.model) == ("l1", None, "English", "vicuna-13b")
    assert (found.toxic, found.redacted) == (False, True)
    assert parse_lmsys(lmsys(language="unknown")).language is None


def test_any_flagged_moderation_makes_an_lmsys_row_toxic() -> None:
    assert parse_lmsys(lmsys(openai_moderation=[{"flagged": False}, {"flagged": True}])).toxic
    assert not parse_lmsys(lmsys(openai_moderation=None)).toxic


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"id": "x", "conversation_id": "y"}, ("y", None, None)),
        ({"id": 17, "user": "u"}, ("17", "u", None)),
        ({"id": "x", "user": {"name": "u"}, "user_id": 4}, ("x", "4", None)),
        ({"id": "x", "metadata": {"user_id": "u"}}, ("x", "u", None)),
        ({"id": "x", "created": 1_700_000_000}, ("x", None, "2023-11-14 22:13:20+00:00")),
        ({"id": "x", "timestamp": Decimal("1700000000000")}, ("x", None, "2023-11-14 22:13:20+00:00")),
        ({"id": "x", "timestamp": "2024-05-01T00:00:00Z"}, ("x", None, "2024-05-01T00:00:00Z")),
        ({"id": "x", "timestamp": 1e300}, ("x", None, "1e+300")),
        ({"id": "x\ud800"}, ("x\ufffd", None, None)),
    ],
)
def test_openai_object_keeps_who_and_when_under_any_of_their_names(
    given: dict[str, Any], expected: tuple[str, str | None, str | None]
) -> None:
    found = parse_openai(openai(model="m", language="de", **given))
    assert (found.conversation_id, found.user_id, found.timestamp) == expected
    assert (found.model, found.language) == ("m", "de")


# --- logs of API calls


def growing_calls() -> list[dict[str, Any]]:
    """The calls of one conversation of four user messages, each with all that was said before."""
    said: list[dict[str, Any]] = [{"role": "system", "content": "s"}]
    calls = []
    for i in range(4):
        said = [*said, {"role": "user", "content": f"u{i}"}]
        calls.append(call(said, f"a{i}"))
        said = [*said, {"role": "assistant", "content": f"a{i}"}]
    return calls


def interactions(calls: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    found = []
    for record in calls:
        parsed = parse_openai_logs(record)
        for i in parsed.turns():
            reply, feedback = parsed.messages[i].content, parsed.messages[i + 1].content
            found.append((interaction_id(parsed.conversation_id, i), reply, feedback))
    return found


def test_calls_that_repeat_the_conversation_give_each_interaction_exactly_once() -> None:
    found = interactions(growing_calls())
    assert [(reply, feedback) for _, reply, feedback in found] == [("a0", "u1"), ("a1", "u2"), ("a2", "u3")]
    assert len({id for id, _, _ in found}) == 3


def test_retried_call_gives_the_same_interaction_whatever_was_answered() -> None:
    said = growing_calls()[2]["request"]["messages"]
    retries = [
        call(said, "other"),
        call(said, None),
        {"request": {"messages": said}},
        {**call(said, "x"), "response": 7},
    ]
    assert len(set(interactions([growing_calls()[2], *retries]))) == 1


def test_calls_within_one_reply_that_uses_tools_give_the_same_interaction() -> None:
    said = openai()["messages"]
    used: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "r"},
    ]
    one, again = interactions([call(said, "x"), call([*said, *used], "y")])
    assert one == again


def test_reply_of_the_call_belongs_to_the_conversation_and_has_no_feedback_yet() -> None:
    found = parse_openai_logs(call(openai()["messages"], "new"))
    assert [m.content for m in found.messages] == [*TEXTS, "new"]
    assert found.turns() == [1]
    assert (found.model, found.timestamp) == ("m-1", "2023-11-14 22:13:20+00:00")


@pytest.mark.parametrize("message", [None, "text", {"role": "alien", "content": "x"}, {"content": {"a": 1}}])
def test_reply_that_cannot_be_used_does_not_cost_the_feedback_in_the_request(message: Any) -> None:
    record = {**call(openai()["messages"], None), "response": {"choices": [{"message": message}]}}
    found = parse_openai_logs(record)
    assert found.turns() == [1]
    assert sum(found.oddities.get(name, 0) for name in ("no_response", "unusable_response")) == 1


def test_request_and_response_of_the_batch_api_are_read_from_below_body() -> None:
    plain = call(openai()["messages"], "new", user="u")
    batch = {"custom_id": "1", **{key: {"status_code": 200, "body": value} for key, value in plain.items()}}
    one, other = parse_openai_logs(plain), parse_openai_logs(batch)
    assert one == other
    assert one.user_id == "u"


# --- ids, odd shapes


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


def test_tools_in_sharegpt_logs_are_part_of_the_reply() -> None:
    said = [("human", "a"), ("function_call", '{"name": "f"}'), ("observation", "r"), ("gpt", "b"), ("human", "c")]
    found = parse_sharegpt({"conversations": [{"from": who, "value": text} for who, text in said]})
    assert [m.content for m in found.messages] == ["a", "[tool call]\n\n[tool result]\n\nb", "c"]
    assert found.turns() == [1]


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("wildchat", {}, "no_messages"),
        ("wildchat", {"conversation": []}, "no_messages"),
        ("wildchat", {"conversation": "hello"}, "no_messages"),
        ("wildchat", {"conversation": [None]}, "bad_message"),
        ("wildchat", {"conversation": [{"role": "alien", "content": "x"}]}, "unknown_role"),
        ("wildchat", None, "not_an_object"),
        ("lmsys", {"conversation": None}, "no_messages"),
        ("openai", {"messages": "hello"}, "no_messages"),
        ("openai", 7, "not_an_object"),
        ("openai", {"messages": [{"role": "user", "content": 3}]}, "content_not_text"),
        ("openai-logs", [], "not_an_object"),
        ("openai-logs", {}, "no_messages"),
        ("openai-logs", {"request": "GET /", "response": {}}, "no_messages"),
        ("openai-logs", {"request": {"messages": [{"role": "x"}]}}, "unknown_role"),
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
