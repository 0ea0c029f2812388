"""WildFB records: each becomes a row or gives a reason, and a label that was misread never becomes a number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.wildfb import parse, unusable

ASKED = {"role": "user", "content": "What comes after 1?"}
REPLIED = {"role": "assistant", "content": "2."}


def record(**changes: Any) -> dict[str, Any]:
    made = {"id": "r1", "history": [], "text": "", "messages": [ASKED, REPLIED], "user_feedback": "ok", "label": 3}
    return {**made, **changes}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in record().items() if name != field}


def test_a_whole_record_becomes_a_row_of_texts_and_label() -> None:
    assert parse(record(), 7) == {
        "row_id": "r1",
        "history": [],
        "prompt": "What comes after 1?",
        "response": "2.",
        "label": 3,
        "user_id": None,
        "language": None,
        "origin": None,
        "reason": None,
        "detail": None,
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not_an_object"),
        ([1], "not_an_object"),
        ({}, "no_messages"),
        (without("messages"), "no_messages"),
        (record(messages="What comes after 1?"), "no_messages"),
        (record(messages=[REPLIED]), "no_messages"),
        (record(messages=[ASKED, {"role": "assistant"}]), "message_without_content"),
        (record(messages=[ASKED, {"role": "assistant", "content": None}]), "message_without_content"),
        (record(messages=[ASKED, "2."]), "message_without_content"),
        (record(history=[["user", "hi"]]), "message_without_content"),
        (record(messages=[REPLIED, ASKED]), "wrong_roles"),
        (record(messages=[ASKED, REPLIED, ASKED]), "wrong_roles"),
        (record(messages=[ASKED, {"content": "2."}]), "wrong_roles"),
        (record(history=[{"role": "judge", "content": "level 4"}]), "wrong_roles"),
        (record(history="user: hi"), "history_not_a_list"),
        (record(history={"role": "user", "content": "hi"}), "history_not_a_list"),
        (record(history=0), "history_not_a_list"),
        (without("label"), "no_label"),
        (record(label=None), "no_label"),
        (record(messages=[{"role": "user", "content": " \n"}, REPLIED]), "empty_prompt"),
        (record(messages=[ASKED, {"role": "assistant", "content": ""}]), "empty_response"),
    ],
)
def test_what_cannot_be_used_says_why_and_holds_nothing_to_train_on(value: Any, reason: str) -> None:
    row = parse(value, 7)
    assert row["reason"] == reason
    assert row["detail"]
    assert "\n" not in row["detail"]
    assert (row["history"], row["prompt"], row["response"], row["label"]) == ([], "", "", 0)
    assert row["row_id"] == ("r1" if isinstance(value, dict) and value else "7")
    assert row.keys() == parse(record(), 7).keys() == unusable(7, reason, "").keys()


@pytest.mark.parametrize(("label", "read"), [(3, 3), (3.0, 3), ("3", 3), (" 3 ", 3), (0, 0), (-1, -1), ("12", 12)])
def test_whole_numbers_are_labels_however_they_are_written(label: Any, read: int) -> None:
    found = parse(record(label=label), 7)["label"]
    assert found == read
    assert type(found) is int


@pytest.mark.parametrize("label", [2.5, "good", "2.5", "", True, False, float("nan"), float("inf"), [3], "9" * 5000])
def test_a_label_that_is_no_whole_number_is_an_error_and_no_damaged_row(label: Any) -> None:
    with pytest.raises(UserError, match=r"row 'r1' has label .*whole numbers") as caught:
        parse(record(label=label), 7)
    assert caught.value.flag == "--dataset"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("history", [None, [], "", "  "])
def test_no_history_is_written_in_many_ways(history: Any) -> None:
    assert parse(record(history=history), 7)["history"] == []
    assert parse(without("history"), 7)["history"] == []


def test_history_and_earlier_messages_stand_before_the_prompt_in_order() -> None:
    earlier = [{"role": "system", "content": "Be brief."}, {"role": "Human", "content": "Hi"}]
    row = parse(record(history=earlier, messages=[{"role": "gpt", "content": "Hello"}, ASKED, REPLIED]), 7)
    assert [(m["role"], m["content"]) for m in row["history"]] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    assert (row["prompt"], row["response"]) == (ASKED["content"], REPLIED["content"])


@pytest.mark.parametrize("name", [None, "", [], {}, True])
def test_rows_without_an_id_are_called_by_their_position_and_not_all_the_same(name: Any) -> None:
    assert [parse(record(id=name), number)["row_id"] for number in (0, 8)] == ["0", "8"]


def test_the_user_is_found_under_each_of_its_names_and_is_a_text() -> None:
    assert parse(record(user_id="u", hashed_ip="ip", user="x"), 7)["user_id"] == "u"
    assert parse(record(user_id="", hashed_ip="ip", user="x"), 7)["user_id"] == "ip"
    assert parse(record(user=12), 7)["user_id"] == "12"
    assert parse(record(user={"name": "x"}), 7)["user_id"] is None
    assert parse(record(language="English", label=None), 7)["language"] == "English"


def test_texts_that_utf8_cannot_hold_are_mended() -> None:
    raw = json.loads(json.dumps(record(id="\ud800", messages=[ASKED, {"role": "assistant", "content": "\udc00 2."}])))
    row = parse(raw, 7)
    assert (row["row_id"], row["response"]) == ("\ufffd", "\ufffd 2.")
    json.dumps(row, ensure_ascii=False).encode()
