"""Preference pairs of any origin: the shapes of records, and what counts as won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Item, Row
from wildreward_ray.reward.benchmarks.pairs import PAIRS


def rows(*records: Mapping[str, Any], file: str = "pairs.jsonl") -> list[Row]:
    return [Row(file, number, value) for number, value in enumerate(records, start=1)]


def only(**value: Any) -> Item:
    (item,) = PAIRS.read(rows(value)).items
    return item


def chat(*turns: str) -> list[dict[str, Any]]:
    """Messages of user and assistant in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def metrics(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    outcomes = PAIRS.outcomes(items, [np.array(of) for of in scores])
    means: dict[str, list[Floats]] = {}
    for group, value in zip(outcomes.groups, outcomes.values, strict=True):
        means.setdefault(group, []).append(value)
    combined = PAIRS.combine(
        {group: np.mean(values, axis=0) for group, values in means.items()},
        {group: len(values) for group, values in means.items()},
    )
    return {name: float(value) for name, value in combined.items()}


BEFORE = chat("Hi", "Hello")
ASKED = chat("Hi", "Hello", "Why?")
WHY, SO = chat("Why?", "So.")
NO = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be."}


@pytest.mark.parametrize(
    ("value", "history"),
    [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, []),
        ({"prompt": "Why?", "history": None, "chosen": "So.", "rejected": "No."}, []),
        ({"prompt": "Why?", "history": BEFORE, "chosen": "So.", "rejected": "No."}, BEFORE),
        ({"prompt": ASKED, "chosen": "So.", "rejected": "No."}, BEFORE),
        ({"prompt": ASKED, "chosen": [SO], "rejected": [NO]}, BEFORE),
        ({"history": ASKED, "chosen": ["So."], "rejected": ["No."]}, BEFORE),
        ({"chosen": [*ASKED, SO], "rejected": [*ASKED, NO]}, BEFORE),
        ({"prompt": "Hi", "chosen": [*ASKED, SO], "rejected": [*ASKED, NO]}, BEFORE),
        ({"chosen": [SYSTEM, WHY, SO], "rejected": [SYSTEM, WHY, NO]}, [SYSTEM]),
    ],
    ids=(
        "text",
        "no-history",
        "text-after-history",
        "messages",
        "replies-as-messages",
        "history",
        "whole",
        "whole-and-prompt",
        "system",
    ),
)
def test_every_shape_of_record_says_the_same(value: dict[str, Any], history: list[dict[str, str]]) -> None:
    item = only(**value)
    assert (item.prompt, list(item.history)) == ("Why?", history)
    assert (item.responses, item.correct) == (("So.", "No."), (True, False))


def test_messages_keep_nothing_but_role_and_content() -> None:
    value = [{**message, "annotation": None} for message in ASKED]
    assert only(prompt=value, chosen="So.", rejected="No.").history == tuple(BEFORE)


def test_several_replies_meet_all_those_of_the_other_side() -> None:
    item = only(prompt="Why?", chosen=["a", "b"], rejected=["c", "d", "e"])
    assert item.responses == ("a", "b", "c", "d", "e")
    assert PAIRS.pairs(item) == [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]
    # a beats c only, b beats c and d and ties with e: 3 of 6.
    assert metrics([item], [(1, 3, 0, 2, 3)]) == {"accuracy": 0.5}


def test_accuracy_weighs_prompts_alike_and_groups_are_given_where_there_are_several() -> None:
    one = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    items = PAIRS.read(
        rows(*({**one, "subset": name} for name in ("x", "y", "x", "x")), {**one, "chosen": ["So", "Thus"]})
    ).items
    assert [item.group for item in items] == ["x", "y", "x", "x", "all"]
    # Right: x 2 of 3, y 1 of 1, all half of its two pairs; together 3.5 of 5.
    got = metrics(items, [(1, 0), (1, 0), (0, 1), (1, 0), (1, 0, 0)])
    assert got == pytest.approx({"accuracy": 0.7, "x": 2 / 3, "y": 1.0, "all": 0.5})
    assert metrics(items[:1], [(1, 0)]) == {"accuracy": 1.0}


def test_a_tie_is_wrong() -> None:
    assert metrics([only(prompt="Why?", chosen="So.", rejected="No.")], [(1, 1)]) == {"accuracy": 0.0}


def test_the_group_is_the_first_field_that_says_something() -> None:
    one = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    assert only(**one).group == "all"
    assert only(**one, source="web", subset=None).group == "web"
    assert only(**one, source="web", domain="law", category="hard").group == "hard"


def test_records_without_an_id_are_numbered_over_all_files() -> None:
    one = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    both = [*rows(one, one, file="1.parquet"), *rows(one, {**one, "id": 77}, file="2.parquet")]
    assert [item.id for item in PAIRS.read(both).items] == ["all/1", "all/2", "all/3", "all/77"]
    with pytest.raises(UserError, match="1 ids stand twice in the benchmark: 'all/77'"):
        PAIRS.read(rows({**one, "id": 77}, {**one, "id": "77"}))


ONE = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"chosen": "So.", "rejected": "No."}, "no prompt: prompt or history is needed"),
        ({"chosen": [SO], "rejected": [NO]}, "no prompt: prompt or history is needed"),
        ({**ONE, "prompt": ""}, "prompt = ''"),
        ({**ONE, "prompt": 5}, "prompt is a int: a list of messages is needed"),
        ({**ONE, "prompt": ASKED, "history": BEFORE}, "both prompt and history are messages"),
        ({**ONE, "prompt": BEFORE}, "prompt has no message of the user that is answered"),
        ({**ONE, "prompt": []}, "prompt has no message of the user that is answered"),
        ({**ONE, "prompt": [{"role": "human", "content": "Why?"}]}, "message 1 of prompt has the role 'human'"),
        ({**ONE, "prompt": [*BEFORE, {"role": "user", "content": None}]}, "message 3 of prompt has no content"),
        ({**ONE, "history": "Hi"}, "history is a str: a list of messages is needed"),
        ({**ONE, "rejected": None}, "rejected = None: a list of texts is needed"),
        ({**ONE, "chosen": []}, "chosen = []: a list of texts is needed"),
        ({**ONE, "chosen": chat("Why?", "So.")}, "rejected is a str: a list of messages is needed"),
        ({"chosen": [WHY, SO], "rejected": [*ASKED, NO]}, "chosen and rejected differ in more than their last message"),
        ({"chosen": [WHY], "rejected": [WHY, NO]}, "chosen does not end with a message of the assistant"),
        ({"chosen": [*BEFORE, SO], "rejected": [*BEFORE, NO]}, "chosen has no message of the user that is answered"),
        ({**ONE, "subset": 3}, "subset = 3: a text is needed"),
        ({**ONE, "subset": "accuracy"}, "a group can't be called 'accuracy'"),
        ({**ONE, "id": 1.5}, "id = 1.5: an id is needed"),
    ],
)
def test_a_record_that_can_not_be_used_is_named(value: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as e:
        PAIRS.read(rows({**ONE}, value))
    assert f"record 2 of pairs.jsonl: {told}" in str(e.value)
    assert e.value.flag == "--data"
