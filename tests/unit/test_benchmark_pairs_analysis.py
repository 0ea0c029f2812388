"""Margins, calibration and consistency against values worked out by hand, by brute force and by simulation."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from wildreward_ray.reward.benchmarks.consistency import WeightedAuc, consistency, distributions
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Item, Outcomes, Pair, Reading
from wildreward_ray.reward.benchmarks.margins import (
    PairScores,
    margin_curve,
    margin_table,
    pair_scores,
    pair_summary,
)
from wildreward_ray.reward.benchmarks.pair_calibration import MAX_LOG_ODDS, fit_slope, pair_calibration


def item(number: int, correct: tuple[bool, ...], group: str = "g") -> Item:
    return Item(str(number), group, (), "prompt", tuple(map(str, range(len(correct)))), correct)


def pairs_of(gaps: list[float] | Floats, per_item: int = 1) -> PairScores:
    gap = np.asarray(gaps, dtype=float)
    return PairScores(gap, np.zeros(len(gap)), np.arange(len(gap)) // per_item)


def benchmark(pairs: list[Pair]) -> Benchmark:
    def unused(*_: object) -> Outcomes:
        raise AssertionError("not asked for")

    return Benchmark("b", "B", "", (), lambda _: Reading(()), unused, lambda *_: {}, lambda _: pairs, "first and last")


def test_pair_scores_are_those_of_the_pairs_and_know_their_item() -> None:
    items = [item(0, (True, True, False)), item(1, (True, True, False))]
    found = pair_scores(benchmark([(0, 2), (1, 2)]), items, [np.array([3.0, 2.0, 1.0]), np.array([4.0, 5.0, 6.0])])
    assert found.right.tolist() == [3, 2, 4, 5]
    assert found.wrong.tolist() == [1, 1, 6, 6]
    assert found.item.tolist() == [0, 0, 1, 1]
    assert len(found) == 4


def test_the_margin_table_is_that_worked_out_by_hand() -> None:
    # In order at 2, 1 and 0.25; not at -0.5 and at the tie.
    found = margin_table(pairs_of([2, 1, 0.25, -0.5, 0]), thresholds=(0, 0.25, 0.5, 1, 3), resamples=200, seed=0)
    got = [(row["threshold"], row["pairs"], row["coverage"], row["accuracy"]) for row in found]
    assert got == [
        (0.0, 5, 1.0, 3 / 5),
        (0.25, 4, 0.8, 3 / 4),
        (0.5, 3, 0.6, 2 / 3),
        (1.0, 2, 0.4, 1.0),
        (3.0, 0, 0.0, None),
    ]
    assert (found[-1]["low"], found[-1]["high"]) == (None, None)
    assert found[0]["low"] < 0.6 < found[0]["high"]
    json.dumps(found, allow_nan=False)


def test_the_pairs_of_one_item_are_drawn_together() -> None:
    gap = np.where(np.random.default_rng(0).random(200) < 0.7, 1.0, -1.0)
    alone = pair_summary(benchmark([]), pairs_of(gap), resamples=2000, seed=0)
    repeated = pair_summary(benchmark([]), pairs_of(np.repeat(gap, 9), per_item=9), resamples=2000, seed=0)
    assert repeated["n"] == 1800
    assert (repeated["low"], repeated["high"]) == pytest.approx((alone["low"], alone["high"]), abs=0.01)
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 200) ** 0.5, rel=0.1)


def test_the_summary_counts_ties_and_they_are_not_in_order() -> None:
    found = pair_summary(benchmark([]), pairs_of([1, 0, 0, -1]), resamples=100, seed=0)
    assert (found["are"], found["n"], found["accuracy"], found["ties"]) == ("first and last", 4, 0.25, 2)


def test_the_curve_ends_with_all_pairs_and_agrees_with_the_table() -> None:
    gap = np.random.default_rng(0).normal(0.3, 1, size=1234)
    pairs = pairs_of(gap)
    curve = margin_curve(pairs)
    assert len(curve) == 100
    assert curve[-1] == {"coverage": 1.0, "accuracy": (gap > 0).mean(), "threshold": np.abs(gap).min()}
    assert [p["coverage"] for p in curve] == pytest.approx(np.arange(1, 101) / 100, abs=1 / 1234)
    table = margin_table(pairs, thresholds=[p["threshold"] for p in curve], resamples=1, seed=0)
    assert [(r["coverage"], r["accuracy"]) for r in table] == [(p["coverage"], p["accuracy"]) for p in curve]


def test_the_curve_does_not_part_pairs_with_one_margin() -> None:
    # Whichever of the eight came first would otherwise decide what a share of them is worth.
    found = margin_curve(pairs_of([2, 2, 1, -1, 1, -1, 1, -1, 1, -1]), points=5)
    assert found == [
        {"coverage": 0.2, "accuracy": 1.0, "threshold": 2.0},
        {"coverage": 1.0, "accuracy": 0.6, "threshold": 1.0},
    ]


def test_the_curve_is_the_same_for_rescaled_scores() -> None:
    gap = np.random.default_rng(1).normal(0.3, 1, size=300)
    one, other = ([(p["coverage"], p["accuracy"]) for p in margin_curve(pairs_of(gap * k))] for k in (1, 64))
    assert one == other


def test_without_pairs_there_are_no_figures() -> None:
    none = pairs_of([])
    assert margin_table(none, resamples=100, seed=0) == margin_curve(none) == []
    assert pair_calibration(none, splits=2, seed=0) is None
    summary = pair_summary(benchmark([]), none, resamples=100, seed=0)
    assert [summary[name] for name in ("n", "accuracy", "low", "high", "ties")] == [0, None, None, None, 0]


def logistic_pairs(n: int, slope: float, seed: int) -> Floats:
    """Gaps of pairs that are in order with chance sigmoid(slope * margin)."""
    rng = np.random.default_rng(seed)
    margin = rng.exponential(size=n)
    return np.where(rng.random(n) < expit(slope * margin), margin, -margin)


def test_pairs_that_follow_the_model_have_a_small_error_and_its_slope() -> None:
    found = pair_calibration(pairs_of(logistic_pairs(20_000, 1.7, 0)), splits=5, seed=0)
    assert found is not None
    assert found["slope"] == pytest.approx(1.7, rel=0.05)
    assert found["ece"] < 0.015
    assert found["ece_low"] <= found["ece"] <= found["ece_high"]
    assert sum(b["count"] for b in found["bins"]) == 5 * 20_000
    for b in found["bins"]:
        assert b["observed"] == pytest.approx(b["predicted"], abs=0.025)
    json.dumps(found, allow_nan=False)


def test_margins_that_say_nothing_beyond_the_sign_have_a_large_error() -> None:
    # Every pair is in order with chance 0.8, whatever its margin: small ones are trusted too little, large ones too much.
    rng = np.random.default_rng(0)
    margin = rng.exponential(size=20_000) ** 3
    found = pair_calibration(pairs_of(np.where(rng.random(20_000) < 0.8, margin, -margin)), splits=3, seed=0)
    assert found is not None
    assert found["ece"] > 0.1
    assert found["bins"][0]["observed"] > found["bins"][0]["predicted"] + 0.2
    assert found["bins"][-1]["observed"] < found["bins"][-1]["predicted"] - 0.1


def test_the_error_is_that_of_the_half_the_slope_was_not_fitted_on() -> None:
    """Two items, so that the halves are known: 20 pairs in order and 20 that mostly aren't."""
    good, bad = np.full(20, 1.0), np.array([1.0] * 5 + [-1.0] * 15)
    pairs = PairScores(np.concatenate([good, bad]), np.zeros(40), np.repeat([0, 1], 20))
    found = pair_calibration(pairs, splits=4, seed=0)
    assert found is not None
    # Fitted on the good half: confidence 1 where 5 of 20 are in order. On the bad: slope 0, 0.5 where all are.
    assert found["ece"] == pytest.approx((0.75 + 0.5) / 2, abs=1e-6)
    assert found["slope"] == pytest.approx(np.log(25 / 15))
    # All splits are this one: 15 of 40 pairs lose 20 nats, 20 lose log 2.
    assert found["nll"] == pytest.approx((15 * MAX_LOG_ODDS + 20 * np.log(2)) / 40)


def test_the_unit_of_the_scores_does_not_matter() -> None:
    gap = logistic_pairs(500, 1.0, 1)
    one, other = (pair_calibration(pairs_of(gap * k), splits=3, seed=0) for k in (1.0, 1e4))
    assert one is not None
    assert other is not None
    assert other["ece"] == pytest.approx(one["ece"], abs=1e-6)
    assert other["nll"] == pytest.approx(one["nll"], abs=1e-6)
    assert other["slope"] * 1e4 == pytest.approx(one["slope"], rel=1e-6)


def test_the_slope_is_the_most_likely_one() -> None:
    gap = logistic_pairs(400, 2.5, 3)
    found = minimize_scalar(lambda s: np.logaddexp(0, -s * gap).mean(), bounds=(0, 50), method="bounded")
    assert fit_slope(gap) == pytest.approx(found.x, abs=1e-4)


def test_the_slope_is_never_negative_and_never_infinite() -> None:
    assert fit_slope(np.array([-1.0, -2.0, 1.0])) == 0.0
    assert fit_slope(np.zeros(5)) == 0.0
    assert fit_slope(np.array([0.5, 1.0, 4.0])) == MAX_LOG_ODDS


def test_equal_scores_are_a_coin() -> None:
    # Every fit meets 30 ties and margins in order alike: ties have confidence 0.5 and are half in order, hence no error.
    found = pair_calibration(pairs_of([0.0] * 60 + [1.0] * 60), splits=3, seed=0)
    assert found is not None
    assert found["ece"] == pytest.approx(0, abs=1e-6)
    assert found["bins"][0] == {"predicted": 0.5, "observed": 0.5, "count": 180}


@pytest.mark.parametrize(
    "pairs",
    [pairs_of([1.0] * 19), pairs_of([0.0] * 50), pairs_of([1.0] * 50, per_item=50)],
    ids=["19 pairs", "no margin", "one item"],
)
def test_too_little_to_calibrate_gives_none(pairs: PairScores) -> None:
    assert pair_calibration(pairs, splits=2, seed=0) is None


def brute_auc(right: list[float], wrong: list[float]) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in product(right, wrong)]))


def test_the_area_is_that_of_all_pairs_and_resamples_repeat_rows() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=40).astype(float)
    right = rng.random(40) < 0.4
    area = WeightedAuc(scores, right)
    counts = rng.integers(0, 4, size=(5, 40))
    got = area.of(np.concatenate([np.ones((1, 40)), counts]).astype(float))
    assert got[0] == pytest.approx(brute_auc(scores[right].tolist(), scores[~right].tolist()))
    for found, count in zip(got[1:], counts, strict=True):
        assert found == pytest.approx(roc_auc_score(np.repeat(right, count), np.repeat(scores, count)))
    assert np.isnan(area.of(np.where(right, 0.0, 1.0)[None])).all()


def test_consistency_pools_prompts_and_within_auc_does_not() -> None:
    # Each prompt is in order, but the second one's scores are all above the first one's.
    items = [item(0, (True, False)), item(1, (True, False, False)), item(2, (True,))]
    scores = [np.array([1.0, 0.0]), np.array([9.0, 8.0, 9.0]), np.array([8.0])]
    found = consistency(items, scores, resamples=50, seed=0)
    assert found["within_auc"] == pytest.approx((1 + 3 / 4) / 2)
    assert found["auc"] == pytest.approx(brute_auc([1, 9, 8], [0, 8, 9]))
    assert (found["right"], found["wrong"]) == (3, 3)


def test_the_interval_of_the_area_is_drawn_by_item() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal([0.8, 0.0]) for _ in range(150)]
    items = [item(i, (True, False)) for i in range(150)]
    found = consistency(items, scores, resamples=1000, seed=0)
    assert found["low"] < found["auc"] < found["high"]
    # The same replies five times over tell nothing new.
    fivefold = consistency(
        [item(i, (True,) * 5 + (False,) * 5) for i in range(150)],
        [np.repeat(s, 5) for s in scores],
        resamples=1000,
        seed=0,
    )
    assert (fivefold["low"], fivefold["high"]) == pytest.approx((found["low"], found["high"]), abs=1e-9)
    drawn = [np.stack([scores[i] for i in rng.integers(0, 150, 150)]) for _ in range(400)]
    samples = [(s[:, :1] > s[:, 1]).mean() for s in drawn]
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(samples, [0.025, 0.975]), abs=0.012)


def test_one_side_only_has_no_area() -> None:
    found = consistency([item(0, (True, True))], [np.array([1.0, 2.0])], resamples=10, seed=0)
    assert found == {"auc": None, "low": None, "high": None, "right": 2, "wrong": 0, "within_auc": None}


def test_every_response_is_in_one_bin_of_its_side_and_group() -> None:
    items = [item(0, (True, False)), item(1, (True, False), "h")]
    found = distributions(items, [np.array([20.0, 0.0]), np.array([0.5, 19.0])])
    assert found["edges"] == list(range(21))
    assert found["right"] == [1] + [0] * 18 + [1]
    assert found["wrong"] == [1] + [0] * 18 + [1]
    assert list(found["groups"]) == ["g", "h"]
    # The highest score lies in the last bin, and a score on an edge in the bin above it.
    assert found["groups"]["g"] == {"right": [0] * 19 + [1], "wrong": [1] + [0] * 19}
    assert found["groups"]["h"] == {"right": [1] + [0] * 19, "wrong": [0] * 19 + [1]}
    json.dumps(found, allow_nan=False)


def test_equal_scores_have_a_distribution_too() -> None:
    found = distributions([item(0, (True, False))], [np.array([3.0, 3.0])])
    assert (found["edges"][0], found["edges"][-1]) == (2.5, 3.5)
    assert sum(found["right"]) == sum(found["wrong"]) == 1


def test_scores_that_do_not_fit_the_responses_are_refused() -> None:
    with pytest.raises(ValueError, match="1 scores for the 2 responses of 'g/0'"):
        consistency([item(0, (True, False))], [np.array([3.0])], resamples=10, seed=0)
