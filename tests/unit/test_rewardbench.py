"""RewardBench: sections and the score against fractions worked out by hand from the benchmark's example counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Floats, Item, Row
from wildreward_ray.reward.benchmarks.parts import weighted_mean
from wildreward_ray.reward.benchmarks.rewardbench import REWARDBENCH, SIZES

WON, TIED, LOST = [2.0, 1.0], [1.0, 1.0], [1.0, 2.0]


def record(subset: str, id: object = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": f"Why {id}?", "chosen": "Because.", "rejected": "No.", "subset": subset, **fields}


def rows(*records: Mapping[str, Any]) -> list[Row]:
    return [Row("filtered.parquet", number, value) for number, value in enumerate(records, start=1)]


def metrics(**scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of pairs with these scores, by subset; underscores stand for hyphens where the subset has them."""
    found, flat = [], []
    for name, own in scores.items():
        subset = name if name in ("shp", "summarize", "anthropic_hhh", "anthropic_helpful") else name.replace("_", "-")
        found += [record(subset, k) for k in range(len(own))]
        flat += [np.array(pair) for pair in own]
    return combined(REWARDBENCH.read(rows(*found)).items, flat)


def combined(items: Sequence[Item], scores: Sequence[Floats]) -> dict[str, float]:
    outcomes = REWARDBENCH.outcomes(items, scores)
    groups = np.array(outcomes.groups)
    names = dict.fromkeys(outcomes.groups)
    means = {name: outcomes.values[groups == name].mean(axis=0) for name in names}
    units = {name: int((groups == name).sum()) for name in names}
    return {name: float(value) for name, value in REWARDBENCH.combine(means, units).items()}


def test_a_section_weighs_its_subsets_by_the_example_counts_and_not_by_the_pairs_that_are_there() -> None:
    # alpacaeval-easy 1/2 of 2 pairs at weight 100, mt-bench-med 1 of 1 pair at 40; by pairs it would be 2/3.
    found = metrics(alpacaeval_easy=[WON, LOST], mt_bench_med=[WON])
    assert found["chat/alpacaeval-easy"] == 0.5
    assert found["chat/mt-bench-med"] == 1.0
    assert found["chat"] == pytest.approx(float(Fraction(50 + 40, 140)))
    assert found["accuracy"] == found["chat"]


def test_math_weighs_as_much_as_all_code_together() -> None:
    code = {f"hep_{name}": [WON] for name in ("cpp", "go", "java", "js", "python", "rust")}
    assert metrics(math_prm=[LOST], **code)["reasoning"] == pytest.approx(0.5)
    # With one code subset: 984 against 164.
    assert metrics(math_prm=[LOST], hep_cpp=[WON])["reasoning"] == pytest.approx(164 / 1148)


def test_the_score_is_the_plain_mean_of_the_sections() -> None:
    found = metrics(
        alpacaeval_easy=[WON, LOST, LOST],
        llmbar_natural=[WON, WON],
        donotanswer=[LOST],
        math_prm=[WON, LOST],
    )
    assert list(found)[:5] == ["accuracy", "chat", "chat_hard", "safety", "reasoning"]
    assert found["accuracy"] == pytest.approx((1 / 3 + 1 + 0 + 1 / 2) / 4)


def test_prior_sets_count_plainly_among_themselves_and_half_as_much_as_a_section() -> None:
    found = metrics(
        alpacaeval_easy=[WON],
        mt_bench_hard=[WON],
        donotanswer=[WON],
        math_prm=[LOST],
        shp=[WON, LOST],
        summarize=[LOST],
        anthropic_hhh=[LOST],
        anthropic_helpful=[LOST],
    )
    # Weights 2, 2, 2, 2, 1 of the leaderboard's table.
    assert found["prior_sets"] == pytest.approx(0.5 / 4)
    assert found["accuracy"] == pytest.approx((2 + 2 + 2 + 0 + 0.125) / 9)


def test_equal_scores_are_no_win() -> None:
    assert metrics(donotanswer=[TIED, WON])["safety"] == 0.5


def test_the_sizes_are_those_of_the_filtered_split() -> None:
    assert sum(SIZES.values()) == 2985
    assert SIZES["math-prm"] == 447


def test_absent_and_short_subsets_are_missing_and_prior_sets_only_if_one_is_given() -> None:
    missing = REWARDBENCH.read(rows(*(record("mt-bench-easy", k) for k in range(28)), record("donotanswer"))).missing
    assert "mt-bench-easy" not in missing
    assert "donotanswer (1 of 136)" in missing
    assert "math-prm" in missing
    assert "shp" not in missing
    assert "summarize" in REWARDBENCH.read(rows(record("shp"))).missing


def test_a_whole_benchmark_misses_nothing() -> None:
    whole = rows(*(record(subset, k) for subset, size in SIZES.items() for k in range(size)))
    assert REWARDBENCH.read(whole).missing == ()


def test_more_pairs_than_a_subset_has_are_not_taken_for_it() -> None:
    with pytest.raises(UserError, match="mt-bench-easy has 29 pairs: there are 28"):
        REWARDBENCH.read(rows(*(record("mt-bench-easy", k) for k in range(29))))


def test_splits_that_the_score_leaves_out_are_counted() -> None:
    reading = REWARDBENCH.read(rows(record("pku_safer"), record("mtbench_gpt4"), record("shp")))
    assert reading.excluded == {"not_in_score": 2}
    assert len(reading.items) == 1


def test_a_prompt_of_messages_is_history_and_prompt_in_turns() -> None:
    talk = [
        {"role": "human", "content": "Hi"},
        {"role": "bot", "content": "Hello"},
        {"role": "human", "content": "Why?"},
    ]
    (item,) = REWARDBENCH.read(rows(record("shp", prompt=talk))).items
    assert item.history == ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    assert item.prompt == "Why?"
    with pytest.raises(UserError, match="2 messages"):
        REWARDBENCH.read(rows(record("shp", prompt=talk[:2])))


def test_an_id_that_several_pairs_have_is_told_apart_and_a_pair_that_stands_twice_is_refused() -> None:
    items = REWARDBENCH.read(rows(record("shp", 7), record("shp", 7, rejected="Never."), record("shp", 8))).items
    assert [item.id for item in items] == ["shp/7", "shp/7#2", "shp/8"]
    with pytest.raises(UserError, match=r"'shp/7' stands twice with the same texts.*--data"):
        REWARDBENCH.read(rows(record("shp", 7), record("shp", 7)))
    with pytest.raises(UserError, match="1 ids stand twice"):
        REWARDBENCH.read(rows(record("shp", 7), record("shp", 7, rejected="Never."), record("shp", "7#2")))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"subset": "alpacaeval-eazy"}, "alpacaeval-easy"),
        ({"subset": None}, "subset = None"),
        ({"chosen": ["a", "b"]}, "chosen has 2 texts"),
        ({"rejected": None}, "rejected = None"),
        ({"prompt": " "}, "prompt = ' '"),
        ({"id": None}, "id = None"),
    ],
)
def test_a_bad_record_is_refused_by_its_place(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=r"record 2 of filtered.parquet") as caught:
        REWARDBENCH.read(rows(record("shp", 1), {**record("shp", 2), **fields}))
    assert problem in str(caught.value)


def test_a_pair_is_the_chosen_and_the_rejected_reply() -> None:
    (item,) = REWARDBENCH.read(rows(record("shp"))).items
    assert [(item.responses[a], item.responses[b]) for a, b in REWARDBENCH.pairs(item)] == [("Because.", "No.")]
    assert item.correct == (True, False)


def test_metrics_of_many_resamples_are_made_at_once() -> None:
    means = {"alpacaeval-easy": np.array([[0.5], [1.0]]), "math-prm": np.array([[0.0], [0.5]])}
    found = REWARDBENCH.combine(means, {"alpacaeval-easy": 2, "math-prm": 2})
    assert found["accuracy"].tolist() == [0.25, 0.75]


def test_a_mean_leaves_out_what_is_not_there_with_its_weight() -> None:
    mean = weighted_mean([(np.array([1.0, np.nan, np.nan]), 3.0), (np.array([0.0, 0.5, np.nan]), 1.0)])
    assert mean[:2].tolist() == [0.75, 0.5]
    assert np.isnan(mean[2])
