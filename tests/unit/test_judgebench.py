"""JudgeBench: which reply is right, categories, and the accuracy over all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Item, Row
from wildreward_ray.reward.benchmarks.judgebench import JUDGEBENCH

FILE = "gpt-00000-of-00001.jsonl"


def record(id: object, source: str, label: str = "A>B", **fields: Any) -> dict[str, Any]:
    own = {"pair_id": id, "source": source, "label": label, "original_id": "9", "response_model": "m"}
    return {**own, "question": "2 + 2?", "response_A": "four", "response_B": "five", **fields}


def rows(*records: Mapping[str, Any]) -> list[Row]:
    return [Row(FILE, number, value) for number, value in enumerate(records, start=1)]


def metrics(items: Sequence[Item], scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    outcomes = JUDGEBENCH.outcomes(items, [np.array(pair) for pair in scores])
    means: dict[str, list[Floats]] = {}
    for group, value in zip(outcomes.groups, outcomes.values, strict=True):
        means.setdefault(group, []).append(value)
    combined = JUDGEBENCH.combine(
        {group: np.mean(values, axis=0) for group, values in means.items()},
        {group: len(values) for group, values in means.items()},
    )
    return {name: float(value) for name, value in combined.items()}


EIGHT = (
    record("a", "livecodebench"),
    record("b", "mmlu-pro-computer science", "B>A"),
    record("c", "mmlu-pro-math", "A>B"),
    record("d", "mmlu-pro-law", "B>A"),
    record("e", "livebench-reasoning", "A>B"),
    record("f", "livebench-reasoning", "B>A"),
    record("g", "livebench-math", "B>A"),
    record("h", "riddles", "A>B"),
)
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)


def test_sources_are_the_categories_they_begin_with_and_others_their_own() -> None:
    reading = JUDGEBENCH.read(rows(*EIGHT))
    groups = [item.group for item in reading.items]
    assert groups == ["coding", "knowledge", "knowledge", "knowledge", "reasoning", "reasoning", "math", "riddles"]


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        ((154, 98, 56, 42), ()),
        ((154, 51, 34, 31), ()),
        ((308, 149, 90, 73), ()),
        ((154, 98, 56, 41), ("coding (41 of 42)",)),
        ((154, 51, 34, 30), ("reasoning (51 of 98)", "math (34 of 56)", "coding (30 of 42)")),
        ((154, 0, 56, 42), ("reasoning",)),
    ],
    ids=("gpt-4o", "claude", "both", "one-less", "one-less-of-claude", "no-reasoning"),
)
def test_what_is_missing_of_the_files_as_published_is_named(counts: Sequence[int], missing: tuple[str, ...]) -> None:
    sources = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
    pairs = [source for source, count in zip(sources, counts, strict=True) for _ in range(count)]
    assert JUDGEBENCH.read(rows(*(record(id, source) for id, source in enumerate(pairs)))).missing == missing


def test_the_label_says_which_reply_is_right() -> None:
    items = JUDGEBENCH.read(rows(*EIGHT)).items
    assert items[0].responses == items[1].responses == ("four", "five")
    assert (items[0].correct, items[1].correct) == ((True, False), (False, True))
    assert (JUDGEBENCH.pairs(items[0]), JUDGEBENCH.pairs(items[1])) == ([(0, 1)], [(1, 0)])


def test_every_metric_is_the_one_worked_out_by_hand() -> None:
    items = JUDGEBENCH.read(rows(*EIGHT)).items
    # Right: coding 1 of 1, knowledge 2 of 3, reasoning 1 of 2, math 0 of 1, riddles 1 of 1; all together 5 of 8.
    got = metrics(items, [FIRST, SECOND, FIRST, FIRST, FIRST, FIRST, FIRST, FIRST])
    expected = {"accuracy": 5 / 8, "knowledge": 2 / 3, "reasoning": 0.5, "math": 0.0, "coding": 1.0, "riddles": 1.0}
    assert got == pytest.approx(expected)
    assert list(got) == list(expected)


def test_a_tie_is_wrong_whichever_reply_stands_first() -> None:
    assert set(metrics(JUDGEBENCH.read(rows(*EIGHT)).items, [(2.0, 2.0)] * 8).values()) == {0.0}


def test_one_category_alone_has_its_accuracy() -> None:
    items = JUDGEBENCH.read(rows(EIGHT[4], EIGHT[5])).items
    assert metrics(items, [FIRST, FIRST]) == {"accuracy": 0.5, "reasoning": 0.5}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (record("a", "livecodebench", "A=B"), "label = 'A=B': 'A>B' or 'B>A' is needed"),
        (record("a", "livecodebench", label=None), "label = None"),  # type: ignore[arg-type]
        (record("a", ""), "source = ''"),
        (record("a", "accuracy"), "a group can't be called 'accuracy'"),
        (record(None, "livecodebench"), "pair_id = None"),
        (record("a", "livecodebench", question=None), "question = None"),
        (record("a", "livecodebench", response_B=None), "response_B = None"),
        (record("a", "livecodebench", response_A=["x", "y"]), "response_A has 2 texts: 1 are needed"),
    ],
)
def test_a_record_that_can_not_be_used_is_named(value: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as e:
        JUDGEBENCH.read(rows(EIGHT[1], value))
    assert f"record 2 of {FILE}: {told}" in str(e.value)
    assert e.value.flag == "--data"


def test_a_pair_that_stands_twice_is_refused() -> None:
    with pytest.raises(UserError, match="1 ids stand twice in the benchmark: 'reasoning/e'"):
        JUDGEBENCH.read(rows(EIGHT[4], EIGHT[4]))
