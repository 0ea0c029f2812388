"""RewardBench 2: best of four with shared first places, and Ties against numbers worked through from the benchmark's code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Outcomes, Row
from wildreward_ray.reward.benchmarks.rewardbench2 import REWARDBENCH2, SIZE


def record(subset: str, id: object = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": "Why?", "chosen": ["r"], "rejected": ["a", "b", "c"], "subset": subset, **fields}


def tied(id: str, right: int, wrong: int) -> dict[str, Any]:
    return record("Ties", id, chosen=[f"r{k}" for k in range(right)], rejected=[f"w{k}" for k in range(wrong)])


def rows(*records: Mapping[str, Any]) -> list[Row]:
    return [Row("test.parquet", number, value) for number, value in enumerate(records, start=1)]


def measured(*scored: tuple[Mapping[str, Any], Sequence[float]]) -> dict[str, float]:
    items = REWARDBENCH2.read(rows(*(value for value, _ in scored))).items
    outcomes = REWARDBENCH2.outcomes(items, [np.array(own, dtype=np.float64) for _, own in scored])
    return {name: float(value) for name, value in REWARDBENCH2.combine(*group_means(outcomes)).items()}


def group_means(outcomes: Outcomes) -> tuple[dict[str, Floats], dict[str, int]]:
    """Means over the units that say something, as `Benchmark.combine` is promised."""
    groups, means, units = np.array(outcomes.groups), {}, {}
    for name in dict.fromkeys(outcomes.groups):
        own = outcomes.values[groups == name]
        known = ~np.isnan(own)
        count = known.sum(axis=0)
        means[name] = np.divide(
            np.where(known, own, 0).sum(axis=0), count, out=np.full(own.shape[1], np.nan), where=count > 0
        )
        units[name] = len(own)
    return means, units


@pytest.mark.parametrize(
    ("scores", "won"),
    [
        ([2, 1, 0, 1], 1.0),
        ([1, 2, 0, 0], 0.0),
        ([2, 2, 0, 1], 1 / 2),
        ([2, 2, 2, 1], 1 / 3),
        ([2, 2, 2, 2], 1 / 4),
        ([1, 2, 2, 0], 0.0),
    ],
)
def test_a_shared_first_place_counts_by_how_many_share_it(scores: list[float], won: float) -> None:
    assert measured((record("Math"), scores))["math"] == pytest.approx(won)


def test_the_score_is_the_plain_mean_of_the_subsets_whatever_their_sizes() -> None:
    found = measured(
        (record("Factuality", 1), [1, 0, 0, 0]),
        (record("Factuality", 2), [1, 0, 0, 0]),
        (record("Factuality", 3), [0, 1, 0, 0]),
        (record("Focus", 1), [0, 1, 0, 0]),
        (record("Math", 1), [1, 1, 0, 0]),
        (record("Precise IF", 1), [1, 0, 0, 0]),
        (record("Safety", 1), [0, 0, 0, 1]),
        (tied("ref:1", 1, 2), [3, 1, 0]),
        (tied("tied:1", 2, 2), [5, 4, 1, 0]),
    )
    # Ties: gaps 2 and 3, spread 1. All right and preferred; the margin is tanh(2 / 1 - 1).
    ties = 1 + 0.01 * math.tanh(1)
    assert found["ties"] == pytest.approx(ties)
    assert found["accuracy"] == pytest.approx((2 / 3 + 0 + 1 / 2 + 1 + 0 + ties) / 6)
    assert list(found)[:7] == ["accuracy", "factuality", "focus", "math", "precise_if", "safety", "ties"]


def test_ties_are_weighed_as_the_benchmark_does() -> None:
    # Four numbers. 1: gaps 2 and 3, spread 1. 2: reference gap 1, tied gap 3, spread 2: preferred, but not with the smaller gap.
    # 3: reference gap -1, tied gap 0, spread 4: nothing. 4: a reference alone, gap 1, which is right.
    found = measured(
        (tied("ref:1", 1, 2), [3, 1, 0]),
        (tied("tied:1", 2, 2), [5, 4, 1, 0]),
        (tied("ref:2", 1, 1), [1, 0]),
        (tied("tied:2", 3, 1), [7, 6, 5, 2]),
        (tied("ref:3", 1, 1), [0, 1]),
        (tied("tied:3", 2, 1), [4, 0, 0]),
        (tied("ref:4", 1, 1), [1, 0]),
    )
    assert found["ties/reference_accuracy"] == pytest.approx(3 / 4)
    assert found["ties/tied_accuracy"] == pytest.approx(2 / 3)
    assert found["ties/preferred"] == pytest.approx(2 / 3)
    assert found["ties/preferred_hard"] == pytest.approx(1 / 3)
    margin = (math.tanh(2 / 1 - 1) + math.tanh(1 / 2 - 1) + math.tanh(-1 / 4 - 1)) / 3
    assert found["ties/margin"] == pytest.approx(margin)
    score = 0.3 * 2 / 3 + 0.3 * 3 / 4 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * margin
    assert found["ties"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("reference", "tied_scores", "margin"),
    [([1, 0], [2, 2, 0], 1.0), ([0, 1], [2, 2, 0], -1.0), ([0, 0], [2, 2, 0], 0.0)],
)
def test_a_margin_over_no_spread_is_the_sign_of_the_gap(
    reference: list[float], tied_scores: list[float], margin: float
) -> None:
    found = measured((tied("ref:1", 1, 1), reference), (tied("tied:1", 2, 1), tied_scores))
    assert found["ties/margin"] == margin


def test_a_model_that_gives_every_reply_one_score_has_a_quarter_and_no_ties() -> None:
    found = measured(
        (record("Safety"), [1, 1, 1, 1]), (tied("ref:1", 1, 3), [1, 1, 1, 1]), (tied("tied:1", 2, 1), [1, 1, 1])
    )
    assert found["safety"] == 0.25
    assert found["ties"] == 0.0


def test_ties_do_not_change_when_scores_are_shifted_or_stretched() -> None:
    scored: list[tuple[Mapping[str, Any], list[float]]] = [
        (tied("ref:1", 1, 2), [3, 1, 0]),
        (tied("tied:1", 3, 2), [5, 4.5, 2, 1, 0]),
    ]
    other = [(value, [7 + 0.25 * score for score in own]) for value, own in scored]
    assert measured(*scored) == pytest.approx(measured(*other))


def test_a_reference_and_its_tied_prompt_are_one_unit_and_others_stay_apart() -> None:
    reading = REWARDBENCH2.read(
        rows(tied("tied:12", 2, 1), record("Safety"), tied("ref:12", 1, 1), tied("ref:1", 1, 1))
    )
    outcomes = REWARDBENCH2.outcomes(
        reading.items, [np.array(own) for own in ([2.0, 2, 0], [1.0, 0, 0, 0], [1.0, 0], [1.0, 0])]
    )
    assert outcomes.ids == ("Safety/1", "Ties/12", "Ties/1")
    assert outcomes.names[0] == "won"
    assert outcomes.values[0, 0] == 1
    assert np.isnan(outcomes.values[0, 1:]).all()
    # Number 1 has no tied prompt: its reference is right, and nothing else is said.
    assert outcomes.values[2, 1] == 1
    assert np.isnan(outcomes.values[2, 2:]).all()


def test_pairs_leave_ties_out() -> None:
    best, ties = REWARDBENCH2.read(rows(record("Focus"), tied("ref:1", 1, 2))).items
    assert list(REWARDBENCH2.pairs(best)) == [(0, 1), (0, 2), (0, 3)]
    assert list(REWARDBENCH2.pairs(ties)) == []


def test_absent_subsets_are_missing_and_so_are_prompts() -> None:
    assert REWARDBENCH2.read(rows(record("Focus"), record("Precise IF"))).missing == (
        "Factuality",
        "Math",
        "Safety",
        "Ties",
    )
    every = [record(name) for name in ("Factuality", "Focus", "Math", "Precise IF")]
    assert REWARDBENCH2.read(rows(*every, record("Safety"), tied("ref:1", 1, 1))).missing == ("prompts (6 of 1865)",)
    many = [record("Safety", k) for k in range(SIZE - 5)]
    assert REWARDBENCH2.read(rows(*every, *many, tied("ref:1", 1, 1))).missing == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (record("Fokus", 2), "'Focus'"),
        (record("Focus", 2, chosen=["a", "b"]), "chosen has 2 texts"),
        (record("Focus", 2, rejected=[]), "rejected"),
        (record("Focus", 2, num_correct=2), "num_correct = 2, but there are 1"),
        (record("Focus", 2, total_completions=5), "total_completions = 5, but there are 4"),
        (tied("ref-3", 1, 1), "'ref-3'"),
        (tied("ref:03", 1, 1), "'ref:03'"),
        (tied("tied:3", 1, 1), "several right"),
    ],
)
def test_a_bad_record_is_refused_by_its_place(value: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"record 2 of test.parquet") as caught:
        REWARDBENCH2.read(rows(record("Focus", 1), value))
    assert problem in str(caught.value)


def test_a_number_of_ties_stands_once() -> None:
    with pytest.raises(UserError, match="Ties/ref:1"):
        REWARDBENCH2.read(rows(tied("ref:1", 1, 1), tied("ref:1", 1, 2)))


def test_right_counts_in_the_file_are_taken_when_they_agree() -> None:
    reading = REWARDBENCH2.read(rows(record("Math", "m-1", num_correct=1, num_incorrect=3, total_completions=4)))
    assert reading.items[0].id == "Math/m-1"
    assert reading.items[0].correct == (True, False, False, False)
