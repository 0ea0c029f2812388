"""What the reward service takes and gives: one form a request, and never a number that isn't one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from wildreward_ray.core.wire import GetRewardReply, GetRewardRequest, Score, ScoreItem, ScoreRequest

USER, REPLY = {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}
SYSTEM = {"role": "system", "content": "s"}


def test_both_forms_of_an_item_mean_the_same_parts() -> None:
    whole = ScoreItem.model_validate({"messages": [SYSTEM, USER, REPLY]})
    parts = ScoreItem.model_validate({"history": [SYSTEM], "prompt": "p", "response": "r"})
    assert whole.parts() == parts.parts() == ([SYSTEM], "p", "r")


def test_empty_prompt_and_response_are_values_and_not_absent() -> None:
    assert ScoreItem.model_validate({"prompt": "", "response": ""}).parts() == ([], "", "")


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"prompt": "p"},
        {"response": "r"},
        {"messages": []},
        {"messages": [USER]},
        {"messages": [REPLY, USER]},
        {"messages": [USER, REPLY], "response": "r"},
        {"messages": [USER, REPLY], "prompt": "p"},
        {"messages": [USER, REPLY], "history": [USER]},
        {"messages": [{"role": "judge", "content": "x"}, REPLY]},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"prompt": "p", "response": "r", "respones": "x"},
        {"prompt": "p", "response": "r", "messages": None},
        {"messages": [USER, REPLY], "prompt": None},
        {"prompt": "p", "response": "r", "history": None},
    ],
)
def test_item_in_no_form_or_in_two_is_refused(item: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScoreItem.model_validate(item)


def test_request_without_items_or_with_unknown_keys_is_refused() -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate({"items": []})
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate({"items": [{"prompt": "p", "response": "r"}], "modle": "x"})


def test_reward_request_takes_what_both_known_clients_send() -> None:
    assert GetRewardRequest.model_validate({"query": ["a"]}).query == ["a"]
    # OpenRLHF's labels are whatever its data set holds.
    for label in ("l", None, 1, ["l"]):
        openrlhf = {"query": ["a"], "prompts": ["p"], "labels": [label], "images": None}
        assert GetRewardRequest.model_validate(openrlhf).query == ["a"]
    with pytest.raises(ValidationError):
        GetRewardRequest.model_validate({"query": []})


def test_schema_promises_no_null_where_null_is_refused() -> None:
    schema = ScoreRequest.model_json_schema()
    fields = {**schema["properties"], **schema["$defs"]["ScoreItem"]["properties"]}
    assert {name: field["type"] for name, field in fields.items()} == {
        "items": "array",
        "model": "string",
        "messages": "array",
        "history": "array",
        "prompt": "string",
        "response": "string",
    }
    assert not any("default" in fields[name] for name in ("model", "messages", "prompt", "response"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_reply_carries_a_number_that_is_none(bad: float) -> None:
    good = {"score": 2.0, "level_probs": [0.5, 0.5], "p_gt": [0.5]}
    Score.model_validate(good)
    for broken in ({"score": bad}, {"level_probs": [bad, 0.5]}, {"p_gt": [bad]}):
        with pytest.raises(ValidationError):
            Score.model_validate({**good, **broken})
    with pytest.raises(ValidationError):
        GetRewardReply(rewards=[bad], scores=[0.0], extra_logs={})
