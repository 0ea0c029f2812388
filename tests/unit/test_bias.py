"""Observed bias: scorers that follow one trait alone show that trait's effect, and others don't."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from wildreward_ray.reward.benchmarks.bias import interval, observed, resampled, within_sd
from wildreward_ray.reward.benchmarks.items import Floats, Item
from wildreward_ray.reward.benchmarks.text_features import length, markdown

Scorer = Callable[[str, bool], float]


def refuses(text: str) -> bool:
    return text.removeprefix("- ").startswith("Sorry")


def item(number: int, responses: list[str], correct: list[bool]) -> Item:
    return Item(str(number), "all", (), "What?", tuple(responses), tuple(correct))


def drawn_items(n: int = 150, *, right_is_longer: bool = False) -> list[Item]:
    """Items of four replies of any length, half marked up and a quarter refusing, by chance."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(n):
        correct = [True, True, False, False]
        texts = []
        for right in correct:
            words = int(rng.integers(5, 120)) * (3 if right_is_longer and right else 1)
            text = " ".join(["word"] * words)
            text = f"Sorry, no. {text}" if rng.random() < 0.25 else text
            texts.append(f"- {text}" if rng.random() < 0.5 else text)
        made.append(item(number, texts, correct))
    return made


def effects(items: list[Item], scorer: Scorer, **settings: Any) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    scores = [
        np.array([scorer(t, c) + rng.normal(0, 0.3) for t, c in zip(i.responses, i.correct, strict=True)])
        for i in items
    ]
    rows = observed(items, scores, refuses, **{"resamples": 400, "seed": 0} | settings)
    return {row["name"]: row for row in rows}


def holds_zero(row: dict[str, Any]) -> bool:
    return bool(row["low"] <= 0 <= row["high"])


def doublings(text: str) -> float:
    return float(np.log2(length(text)))


SCORERS: dict[str, Scorer] = {
    "length": lambda text, right: doublings(text),
    "markdown": lambda text, right: float(markdown(text) > 0),
    "refusal": lambda text, right: -float(refuses(text)),
    "nothing": lambda text, right: 0.0,
    "right": lambda text, right: float(right),
}
SIGNS = {"length": 1, "markdown": 1, "refusal": -1}


@pytest.mark.parametrize("followed", SCORERS)
def test_scorer_that_follows_one_trait_shows_that_effect_and_no_other(followed: str) -> None:
    found = effects(drawn_items(), SCORERS[followed])
    for name, sign in SIGNS.items():
        if name == followed:
            assert min(sign * found[name]["low"], sign * found[name]["high"]) > 0.3
        else:
            assert holds_zero(found[name]), name
    if followed == "length":
        assert found["shorter right"]["high"] < -0.5
    else:
        assert holds_zero(found["shorter right"])


def test_scorer_that_looks_at_correctness_alone_has_no_length_effect_though_right_replies_are_longer() -> None:
    items = drawn_items(right_is_longer=True)
    found = effects(items, SCORERS["right"])
    assert abs(found["length"]["effect"]) < 0.1
    assert holds_zero(found["length"])
    # Without the control the slope is far from 0.
    pairs = [(doublings(i.responses[0]) - doublings(i.responses[2]), 1.0) for i in items]
    assert sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs) > 0.3


def test_effects_are_those_of_least_squares_over_all_pairs() -> None:
    items = [*drawn_items(40), item(99, ["only one"], [True])]
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=len(i.responses)) for i in items]
    rows: list[list[float]] = []
    for one, values in zip(items, scores, strict=True):
        table = [
            (float(c), doublings(t), float(markdown(t) > 0), float(refuses(t)), float(s))
            for c, t, s in zip(one.correct, one.responses, values, strict=True)
        ]
        rows += [[x - y for x, y in zip(a, b, strict=True)] for a, b in combinations(table, 2)]
    differences = np.array(rows)
    sd = np.sqrt(sum(((s - s.mean()) ** 2).sum() for s in scores) / sum(len(s) - 1 for s in scores))
    found = {row["name"]: row for row in observed(items, scores, refuses, resamples=100, seed=0)}
    for name, columns in {"length": [1, 0], "markdown": [2, 0, 1], "refusal": [3, 0, 1]}.items():
        slope = np.linalg.lstsq(differences[:, columns], differences[:, 4], rcond=None)[0][0]
        assert found[name]["effect"] == pytest.approx(slope / sd)
        assert found[name]["n"] == np.count_nonzero(np.abs(differences[:, columns[0]]) > 1e-12)


def test_effects_have_no_unit_of_the_scores() -> None:
    items = drawn_items(30)
    scores = [np.random.default_rng(n).normal(size=4) for n in range(30)]
    plain = observed(items, scores, refuses, resamples=100, seed=0)
    moved = observed(items, [40 * s - n for n, s in enumerate(scores)], refuses, resamples=100, seed=0)
    for a, b in zip(plain, moved, strict=True):
        assert [a[key] for key in ("effect", "low", "high")] == pytest.approx(
            [b[key] for key in ("effect", "low", "high")]
        )


def test_shorter_right_compares_accuracies_by_hand_and_equal_scores_lose() -> None:
    # Right reply shorter: won, lost, equal -> 1/3. Longer: won, lost -> 1/2. Equally long: in neither.
    cases = [
        ("a", "b b", 2, 1),
        ("a", "b b", 1, 2),
        ("a", "b b", 1, 1),
        ("a a", "b", 2, 1),
        ("a a", "b", 1, 2),
        ("a", "b", 2, 1),
    ]
    items = [item(n, [right, wrong], [True, False]) for n, (right, wrong, _, _) in enumerate(cases)]
    scores = [np.array([right, wrong], dtype=float) for _, _, right, wrong in cases]
    row = observed(items, scores, refuses, resamples=100, seed=0)[-1]
    assert row["effect"] == pytest.approx(1 / 3 - 1 / 2)
    assert (row["n"], row["unit"]) == (5, "share")


def empty(row: dict[str, Any]) -> bool:
    return (row["effect"], row["low"], row["high"]) == (None, None, None)


def test_trait_that_no_pair_differs_in_has_no_effect_and_no_pairs() -> None:
    items = [item(n, ["one two", "three four"], [True, False]) for n in range(5)]
    for row in observed(items, [np.array([2.0, 1.0])] * 5, refuses, resamples=100, seed=0):
        assert empty(row)
        assert row["n"] == 0


def test_trait_that_always_goes_with_being_right_has_pairs_but_no_effect() -> None:
    items = [item(n, ["Sorry, no", "three four"], [True, False]) for n in range(5)]
    rows = {r["name"]: r for r in observed(items, [np.array([2.0, 1.0])] * 5, refuses, resamples=100, seed=0)}
    assert empty(rows["refusal"])
    assert rows["refusal"]["n"] == 5


def test_constant_scores_and_items_of_one_response_have_no_effects() -> None:
    assert all(
        empty(row) for row in observed(drawn_items(20), [np.full(4, 0.1)] * 20, refuses, resamples=50, seed=0)[:3]
    )
    alone = [item(n, ["one"], [True]) for n in range(5)]
    rows = observed(alone, [np.ones(1)] * 5, refuses, resamples=50, seed=0)
    assert all(empty(row) and row["n"] == 0 for row in rows)


def test_one_item_has_an_effect_but_no_interval() -> None:
    row = observed(
        [item(0, ["a", "b b", "c c c c"], [True, True, False])],
        [np.array([0.0, 1.0, 2.0])],
        refuses,
        resamples=50,
        seed=0,
    )[0]
    assert row["effect"] is not None
    assert (row["low"], row["high"]) == (None, None)


def test_scores_that_do_not_fit_are_refused() -> None:
    one = item(0, ["a", "b"], [True, False])
    with pytest.raises(ValueError, match=r"all/0: scores of shape \(3,\) for 2 responses"):
        observed([one], [np.zeros(3)], refuses, resamples=10, seed=0)
    with pytest.raises(ValueError, match="scores of 0 items for 1 items"):
        observed([one], [], refuses, resamples=10, seed=0)


def test_within_sd_leaves_out_differences_between_items() -> None:
    assert within_sd([np.array([0.0, 2.0]), np.array([100.0, 104.0])]) == pytest.approx(np.sqrt((2 + 8) / 2))
    assert within_sd([np.array([0.1, 0.1, 0.1])]) == 0
    assert np.isnan(within_sd([np.array([1.0]), np.array([5.0])]))


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        values: Floats = np.random.default_rng([seed, 1]).normal(1.0, 2.0, size=(60, 1))
        low, high = interval(resampled(values, 300, seed)[:, 0] / 60)
        assert low is not None
        assert high is not None
        held += low <= 1.0 <= high
    assert 0.89 <= held / 200 <= 0.98


def test_interval_needs_nine_tenths_of_the_resamples() -> None:
    values: Floats = np.linspace(0, 1, 100, dtype=np.float64)
    values[:11] = np.nan
    assert interval(values) == (None, None)
    values[0] = 5.0
    assert None not in interval(values)
