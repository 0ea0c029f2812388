"""PPE: people's choices and best of K, on a handful of records whose every number is worked out by hand or by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.best_of_k import best_of_curve, some_right_curve
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Outcomes, Row
from wildreward_ray.reward.benchmarks.ppe import CATEGORIES, HUMAN_SIZE, PPE_CORRECTNESS, PPE_HUMAN, SETS


def battle(id: str, winner: str = "model_a", **fields: Any) -> dict[str, Any]:
    return {"question_id": id, "prompt": "Why?", "response_1": "one", "response_2": "two", "winner": winner, **fields}


def question(id: str, flags: Sequence[object], pairs: Sequence[Sequence[int]], **fields: Any) -> dict[str, Any]:
    texts = {f"response_{k}": f"reply {k}" for k in range(1, len(flags) + 1)}
    return {
        "question_id": id,
        "prompt": "Why?",
        "scores": list(flags),
        "sampled_conflict_pairs": pairs,
        **texts,
        **fields,
    }


def rows(*records: Mapping[str, Any], file: str = "train-00000-of-00001.parquet") -> list[Row]:
    return [Row(file, number, value) for number, value in enumerate(records, start=1)]


def measured(benchmark: Benchmark, scored: Sequence[tuple[Mapping[str, Any], Sequence[float]]]) -> dict[str, float]:
    items = benchmark.read(rows(*(value for value, _ in scored))).items
    outcomes = benchmark.outcomes(items, [np.array(own, dtype=np.float64) for _, own in scored])
    return {name: float(value) for name, value in benchmark.combine(*group_means(outcomes)).items()}


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


def test_a_battle_is_won_if_the_preferred_reply_scores_above_the_other() -> None:
    found = measured(
        PPE_HUMAN,
        [
            (battle("1"), [2, 1]),
            (battle("2", "model_b"), [2, 1]),
            (battle("3", "model_b"), [1, 2]),
            (battle("4"), [1, 1]),
        ],
    )
    assert found["accuracy"] == 0.5


def test_a_category_is_measured_on_its_battles_only() -> None:
    found = measured(
        PPE_HUMAN,
        [
            (battle("1", hard_prompt=True, is_code=False, language="English"), [2, 1]),
            (battle("2", hard_prompt=True, is_code=True, language="Chinese"), [1, 2]),
            (battle("3", hard_prompt=False, is_code=True, language="Polish"), [2, 1]),
            (battle("4", hard_prompt=None), [2, 1]),
        ],
    )
    assert found["accuracy"] == 3 / 4
    assert found["hard_prompt"] == 1 / 2
    assert found["is_code"] == 1 / 2
    assert (found["english_prompt"], found["non_english_prompt"], found["chinese_prompt"]) == (1, 1 / 2, 0)
    assert np.isnan(found["russian_prompt"])
    assert np.isnan(found["math_prompt"])
    assert list(found) == ["accuracy", *CATEGORIES]


def test_ties_of_people_are_left_out_and_counted() -> None:
    reading = PPE_HUMAN.read(rows(battle("1"), battle("2", "tie"), battle("3", "tie (bothbad)")))
    assert [item.own_id for item in reading.items] == ["1"]
    assert reading.excluded == {"tie": 2}
    assert reading.missing == ("battles (3 of 16038)",)


def test_a_whole_set_of_battles_misses_nothing_though_some_are_ties() -> None:
    whole = [battle(str(k), "tie" if k % 3 == 0 else "model_b") for k in range(HUMAN_SIZE)]
    assert PPE_HUMAN.read(rows(*whole)).missing == ()


def test_the_pair_of_a_battle_begins_with_the_preferred_reply() -> None:
    items = PPE_HUMAN.read(rows(battle("1"), battle("2", "model_b"))).items
    assert [list(PPE_HUMAN.pairs(item)) for item in items] == [[(0, 1)], [(1, 0)]]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"winner": "model_c"}, "winner = 'model_c'"),
        ({"winner": None}, "winner = None"),
        ({"response_2": None}, "response_2 = None"),
        ({"question_id": ""}, "question_id = ''"),
        ({"is_code": "yes"}, "is_code = 'yes'"),
        ({"language": 3}, "language = 3"),
    ],
)
def test_a_bad_battle_is_refused_by_its_place(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"record 2 of train-00000") as caught:
        PPE_HUMAN.read(rows(battle("1"), {**battle("2"), **fields}))
    assert problem in str(caught.value)


RIGHT_FIRST = question("a", [True, False, False], [[0, 1], [2, 0]], benchmark="gpqa")


def test_every_sampled_pair_counts_alike_whatever_prompt_it_is_of() -> None:
    # The first prompt wins both of its pairs, one of them written wrong before right; the second loses its one: 2 of 3 pairs,
    # where the mean over prompts would be 1/2. In the second, scores are equal.
    found = measured(
        PPE_CORRECTNESS,
        [
            (RIGHT_FIRST, [3, 2, 1]),
            (question("b", [False, True, True], [[0, 1]], benchmark="gpqa"), [1, 1, 5]),
        ],
    )
    assert found["gpqa"] == pytest.approx(2 / 3)
    assert found["accuracy"] == found["gpqa"]
    # All pairs: the first prompt has 2 of 2, the second an equal and a won one.
    assert found["gpqa/auc"] == pytest.approx((1 + 3 / 4) / 2)


def test_a_pair_that_was_sampled_twice_counts_twice_and_is_analysed_once() -> None:
    twice = question("a", [1, 0, 0], [[0, 1], [0, 1], [0, 2]], benchmark="math")
    assert measured(PPE_CORRECTNESS, [(twice, [2, 3, 1])])["math"] == pytest.approx(1 / 3)
    (item,) = PPE_CORRECTNESS.read(rows(twice)).items
    assert list(PPE_CORRECTNESS.pairs(item)) == [(0, 1), (0, 2)]


def test_at_most_five_pairs_of_a_prompt_are_analysed_in_the_order_of_the_file() -> None:
    many = question("a", [0, 1, 0, 0, 0, 0, 0], [[k, 1] for k in (6, 5, 4, 3, 2, 0)], benchmark="math")
    (item,) = PPE_CORRECTNESS.read(rows(many)).items
    assert list(PPE_CORRECTNESS.pairs(item)) == [(1, 6), (1, 5), (1, 4), (1, 3), (1, 2)]


def test_the_overall_numbers_are_plain_means_over_the_sets_that_are_there() -> None:
    second = question("b", [True, False, False], [[0, 1], [0, 2]], benchmark="math")
    third = question("c", [True, False, False], [[0, 1], [0, 2]], benchmark="math")
    found = measured(PPE_CORRECTNESS, [(RIGHT_FIRST, [3, 2, 1]), (second, [0, 1, 2]), (third, [2, 1, 3])])
    assert found["gpqa"] == 1
    assert found["math"] == pytest.approx(1 / 4)
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["auc"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["end_score"] == pytest.approx((1 + 0) / 2)
    assert list(found)[:3] == ["accuracy", "math", "gpqa"]


def test_best_of_k_by_hand() -> None:
    # Right is the second of three by score. Of one: 1/3. Of two: right is best in {2nd, 3rd} only: 1/3. Of three: never.
    second = question("a", [False, True, False], [[1, 0]], benchmark="math")
    found = measured(PPE_CORRECTNESS, [(second, [3, 2, 1])])
    assert found["math/end_score"] == 0
    assert found["math/max_score"] == pytest.approx(1 / 3)
    # A right one is among k in 1/3, 2/3 and 1 of the choices.
    assert found["math/loss"] == pytest.approx((0 + 1 / 3 + 1) / 3)


def test_the_largest_best_of_k_is_of_the_mean_curve() -> None:
    # Curves (1/3, 1/3, 0) and (1/3, 2/3, 1): their mean is largest at k = 2 or 3, both 1/2, and not the mean of 1/3 and 1.
    second = question("a", [False, True, False], [[1, 0]], benchmark="math")
    first = question("b", [True, False, False], [[0, 1]], benchmark="math")
    assert measured(PPE_CORRECTNESS, [(second, [3, 2, 1]), (first, [3, 2, 1])])["math/max_score"] == pytest.approx(
        1 / 2
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_of_best_of_k_is_that_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    correct, scores = rng.random(6) < 0.4, rng.integers(0, 4, 6).astype(float)
    for k in range(1, 7):
        picked, some = [], []
        for choice in itertools.combinations(range(6), k):
            best = max(scores[i] for i in choice)
            picked.append(np.mean([correct[i] for i in choice if scores[i] == best]))
            some.append(any(correct[i] for i in choice))
        assert best_of_curve(correct, scores)[k - 1] == pytest.approx(np.mean(picked))
        assert some_right_curve(correct)[k - 1] == pytest.approx(np.mean(some))


def test_prompts_of_one_kind_of_reply_are_counted_and_enter_best_of_k_only() -> None:
    records = [
        RIGHT_FIRST,
        question("b", [1, 1, 1], [], benchmark="gpqa"),
        question("c", [0, 0, 0], [], benchmark="gpqa"),
        question("d", [0.0, 0.0, 0.0], [], benchmark="gpqa"),
    ]
    assert PPE_CORRECTNESS.read(rows(*records)).excluded == {"all_right": 1, "all_wrong": 2}
    found = measured(PPE_CORRECTNESS, [(value, [3, 2, 1]) for value in records])
    assert (found["gpqa"], found["gpqa/auc"]) == (1, 1)
    assert found["gpqa/end_score"] == pytest.approx(2 / 4)
    only = measured(PPE_CORRECTNESS, [(value, [3, 2, 1]) for value in records[1:]])
    assert np.isnan(only["accuracy"])
    assert only["end_score"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("file", "fields", "name"),
    [
        ("train-00000-of-00001.parquet", {"ifeval_prompt": "Do."}, "ifeval"),
        ("train-00000-of-00001.parquet", {"canary_string": "x", "choices": []}, "gpqa"),
        ("train-00000-of-00001.parquet", {"options": [], "category": "math"}, "mmlu_pro"),
        ("train-00000-of-00001.parquet", {"test_list": []}, "mbpp_plus"),
        ("train-00000-of-00001.parquet", {"problem": "1 + 1"}, "math"),
        ("PPE-MMLU-Pro-Best-of-K.parquet", {}, "mmlu_pro"),
        ("mbpp_plus.jsonl", {}, "mbpp_plus"),
        ("x.jsonl", {"benchmark": "math_best_of_k"}, "math"),
    ],
)
def test_the_set_is_told_by_field_by_file_or_by_what_only_its_records_have(
    file: str, fields: dict[str, Any], name: str
) -> None:
    (item,) = PPE_CORRECTNESS.read(rows(question("1", [1, 0], [[0, 1]], **fields), file=file)).items
    assert item.group == name


def test_absent_and_short_sets_are_missing() -> None:
    whole = [question(str(k), [1, 0], [[0, 1]], benchmark="mbpp_plus") for k in range(SETS["mbpp_plus"])]
    reading = PPE_CORRECTNESS.read(rows(*whole, question("1", [1, 0], [[0, 1]], benchmark="gpqa")))
    assert reading.missing == ("mmlu_pro", "math", "gpqa (1 of 512)", "ifeval")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (question("2", [1, 0, 0], [[0, 1]]), "which set"),
        (question("2", [1, 0, 0.5], [[0, 1]], benchmark="math"), "scores"),
        (question("2", [1], [], benchmark="math"), "scores"),
        (question("2", [1, 0, 0], [[1, 2]], benchmark="math"), "one must be right"),
        (question("2", [1, 0, 0], [[0, 3]], benchmark="math"), "from 0 to 2"),
        (question("2", [1, 0, 0], [[-1, 0]], benchmark="math"), "from 0 to 2"),
        (question("2", [1, 0, 0], [], benchmark="math"), "is empty"),
        (question("2", [1, 0, 0], None, benchmark="math"), "a list of pairs"),  # type: ignore[arg-type]
        (question("2", [1, 0, 0], [[0, 1]], benchmark="math", response_4="more"), "response_4"),
        (question("2", [1, 0, 0], [[0, 1]], benchmark="math", response_2=None), "response_2 = None"),
        (question("2", [1, 0], [[0, 1]], benchmark="math"), "2 scores, but 3"),
    ],
)
def test_a_bad_question_is_refused_by_its_place(value: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"record 2 of train-00000") as caught:
        PPE_CORRECTNESS.read(rows(RIGHT_FIRST, value))
    assert problem in str(caught.value)


def test_metrics_of_many_resamples_are_made_at_once() -> None:
    # won, pairs, auc, loss, best of 1, best of 2.
    means = {"math": np.array([[1.0, 2.0, 0.5, 0.1, 0.4, 0.3], [2.0, 2.0, 1.0, 0.0, 0.4, 0.6]])}
    found = PPE_CORRECTNESS.combine(means, {"math": 3})
    assert found["accuracy"].tolist() == [0.5, 1.0]
    assert found["max_score"].tolist() == [0.4, 0.6]
    assert found["end_score"].tolist() == [0.3, 0.6]
