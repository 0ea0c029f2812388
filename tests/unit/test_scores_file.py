"""Scores from elsewhere: every score finds its response, and a file that leaves a doubt is refused as a whole."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Item
from wildreward_ray.reward.benchmarks.scores_file import match_scores


def item(own_id: str, group: str, *correct: bool) -> Item:
    answers = tuple(f"answer {i}" for i in range(len(correct)))
    return Item(own_id, group, (), "question", answers, correct)


# Responses as RM-Bench, JudgeBench and best-of-many benchmarks have them; "8" stands in two groups.
ITEMS = (
    item("8", "chat", True, True, True, False, False, False),
    item("9", "chat", False, True),
    item("8", "code", True, False, True, False),
    item("10", "code", True, False),
)
SCORES = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [-1.5, 0.25], [7.0, 8.0, 9.0, 10.0], [0.0, 1e-3])


def scores_lines(ids: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"id": one, "scores": scores} for one, scores in zip(ids, SCORES, strict=True)]


def full_lines() -> list[dict[str, Any]]:
    return scores_lines([one.id for one in ITEMS])


def match(lines: Sequence[Any], items: Sequence[Item] = ITEMS) -> list[list[float]]:
    found = match_scores(items, [(number, json.loads(json.dumps(line))) for number, line in enumerate(lines, start=1)])
    assert all(one.dtype == "float64" for one in found)
    return [one.tolist() for one in found]


def refusal(lines: Sequence[Any], items: Sequence[Item] = ITEMS) -> str:
    with pytest.raises(UserError) as caught:
        match(lines, items)
    assert caught.value.flag == "--scores"
    return str(caught.value)


def test_lines_find_their_items_in_any_order() -> None:
    lines = full_lines()
    random.Random(0).shuffle(lines)
    assert match(lines) == list(SCORES)


def test_chosen_are_the_right_responses_wherever_they_stand() -> None:
    lines = [
        {"id": "chat/8", "chosen": [1, 2, 3], "rejected": [4, 5, 6]},
        {"pair_id": 9, "chosen": 0.25, "rejected": -1.5},
        {"question_id": "8", "domain": "code", "score_chosen": [7, 9], "score_rejected": [8, 10]},
        {"id": 10.0, "chosen": [0], "rejected": 0.001},
    ]
    assert match(lines) == list(SCORES)


def test_scores_beside_the_texts_of_the_responses_are_read_and_the_texts_are_not() -> None:
    lines = full_lines()
    lines[0] = {
        "id": "chat/8",
        "chosen": ["a", "b", "c"],
        "rejected": ["d", "e", "f"],
        "score_chosen": [1, 2, 3],
        "score_rejected": [4, 5, 6],
    }
    assert match(lines) == list(SCORES)


def test_one_response_a_line() -> None:
    lines = [
        {"id": one.id, "response": index, "score": score}
        for one, scores in zip(ITEMS, SCORES, strict=True)
        for index, score in enumerate(scores)
    ]
    random.Random(1).shuffle(lines)
    assert match(lines) == list(SCORES)
    assert "responses without a score in 1 of 4 prompts: 'code/10 (1 of 2)'" in refusal(
        [line for line in lines if (line["id"], line["response"]) != ("code/10", 1)]
    )


@pytest.mark.parametrize("field", ["domain", "subset", "group"])
def test_a_field_with_the_groups_name_tells_equal_ids_apart(field: str) -> None:
    lines = scores_lines(["8", "9", "8", "10"])
    for line, one in zip(lines, ITEMS, strict=True):
        line[field] = one.group
    assert match(lines[::-1]) == list(SCORES)


def test_a_field_that_names_no_group_says_nothing_and_one_that_names_another_group_is_believed() -> None:
    lines = full_lines()
    lines[1]["subset"] = "gpt"
    assert match(lines) == list(SCORES)
    lines[1] = {"id": "9", "subset": "code", "scores": SCORES[1]}
    assert "1 line with scores for something not in the benchmark: line 2: '9' of 'code'" in refusal(lines)


def test_an_id_of_several_prompts_is_refused_out_of_order_and_taken_by_place_in_order() -> None:
    lines = scores_lines([8, 9, 8, 10])
    assert match(lines) == list(SCORES)
    message = refusal([lines[1], lines[0], lines[2], lines[3]])
    assert "2 lines with an id that several prompts have: line 2: '8' may be 'chat/8', 'code/8'; line 3" in message
    assert "write `group/id`" in message


def test_a_group_that_is_named_is_believed_over_the_place() -> None:
    lines = scores_lines([8, 9, 8, 10])
    lines[0]["domain"] = "code"
    assert "line 3: '8' may be 'chat/8', 'code/8'" in refusal(lines)


def test_place_decides_nothing_between_groups_that_share_all_of_their_ids() -> None:
    items = [item(own_id, group, True, False) for group in ("chat", "code") for own_id in ("0", "1")]
    lines = [{"id": one.own_id, "scores": [1.0, 0.0]} for one in items]
    assert "4 lines with an id that several prompts have" in refusal(lines, items)


@pytest.mark.parametrize("bad", [[1, 2], "x", 3, None])
def test_a_line_that_is_no_object_is_refused(bad: Any) -> None:
    assert "1 line not an object: line 5: " in refusal([*full_lines(), bad])


@pytest.mark.parametrize("bad", [{}, {"id": None}, {"id": True}, {"id": " "}, {"id": 1.5}, {"id": ["a"]}])
def test_a_line_without_an_id_is_refused(bad: dict[str, Any]) -> None:
    assert "1 line without an id: line 5: " in refusal([*full_lines(), {"scores": [1], **bad}])


@pytest.mark.parametrize("bad", [{}, {"score": 1.0}, {"score": 1.0, "response": True}, {"score": [1.0], "response": 0}])
def test_a_line_without_scores_is_refused(bad: dict[str, Any]) -> None:
    assert "1 line without scores: line 1: 'chat/8'" in refusal([{"id": "chat/8", **bad}])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None, True, "1.5", [1.0], {}, 10**400])
def test_what_is_no_finite_number_is_refused(bad: Any) -> None:
    lines = full_lines()
    lines[1] = {"id": "9", "scores": [bad, 0.25]}
    lines[3] = {"id": "10", "chosen": [1.0], "rejected": [bad]}
    message = refusal(lines)
    assert re.search(
        r"2 lines with what is no score: line 2: '9' has scores = .*; line 4: '10' has rejected = ", message
    )


def test_unknown_ids_are_counted_and_the_first_are_named_with_their_lines() -> None:
    extra = [{"id": f"x{i}", "scores": [1.0]} for i in range(5)]
    message = refusal([*full_lines(), *extra])
    assert (
        "5 lines with scores for something not in the benchmark: line 5: 'x0'; line 6: 'x1'; line 7: 'x2'; and 2 more"
        in (message)
    )


@pytest.mark.parametrize("again", [{"id": "9", "scores": [1, 2]}, {"id": "chat/9", "response": 0, "score": 1}])
def test_a_second_score_for_a_response_is_refused(again: dict[str, Any]) -> None:
    message = refusal([*full_lines(), again])
    assert "1 line with scores that an earlier line gives already: line 5: 'chat/9' (line 2)" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"scores": [1, 2, 3]}, "3 in scores, 2 are needed"),
        ({"scores": []}, "0 in scores, 2 are needed"),
        ({"chosen": [1, 2], "rejected": 3}, "2 in chosen, 1 are needed"),
        ({"chosen": 1}, "0 in rejected, 1 are needed"),
        ({"response": 2, "score": 1.0}, "no response 2"),
        ({"response": -1, "score": 1.0}, "no response -1"),
    ],
)
def test_a_wrong_number_of_scores_is_refused(line: dict[str, Any], said: str) -> None:
    lines = full_lines()
    lines[1] = {"id": "9", **line}
    message = refusal(lines)
    assert "1 line with a wrong number of scores: line 2: 'chat/9'" in message
    assert said in message


def test_prompts_without_scores_are_counted_and_named() -> None:
    assert "scores for 2 of 4 prompts: missing 'chat/8', 'code/10'" in refusal(full_lines()[1:3])
    assert "scores for 0 of 4 prompts: missing 'chat/8', 'chat/9', 'code/8' and 1 more" in refusal([])
