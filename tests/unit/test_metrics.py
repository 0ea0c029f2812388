"""Metrics against values worked out by hand, and None where the data define none."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from scipy.special import expit, ndtr

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.reward.metrics import Reweighted, bootstrap, first_positive, ordinal_metrics, reliability_bins


def certain(levels: list[int], k: int) -> np.ndarray:
    return (np.array(levels)[:, None] > np.arange(1, k)).astype(float)


def test_a_perfect_model_has_perfect_metrics() -> None:
    labels = [1, 2, 3, 4, 4, 1]
    got = ordinal_metrics(certain(labels, 4), np.array(labels), 4)
    for name in ("accuracy", "quadratic_kappa", "spearman", "auc", "accuracy_gt_1", "accuracy_gt_2", "accuracy_gt_3"):
        assert got[name] == pytest.approx(1.0), name
    for name in ("mae", "rmse", "ece"):
        assert got[name] == 0.0, name
    assert got["n"] == 6


def test_values_are_those_worked_out_by_hand() -> None:
    p = np.array([[0.9, 0.6, 0.1], [0.2, 0.1, 0.0], [0.9, 0.8, 0.7], [0.8, 0.3, 0.1]])
    got = ordinal_metrics(p, np.array([2, 1, 4, 3]), 4)
    # Scores 2.6, 1.3, 3.4, 2.2; rounded 3, 1, 3, 2.
    assert got["mae"] == pytest.approx((0.6 + 0.3 + 0.6 + 0.8) / 4)
    assert got["rmse"] == pytest.approx(((0.36 + 0.09 + 0.36 + 0.64) / 4) ** 0.5)
    assert got["accuracy"] == 0.25
    assert got["auc"] == 0.75
    assert (got["accuracy_gt_1"], got["accuracy_gt_2"], got["accuracy_gt_3"]) == (1.0, 0.5, 1.0)
    # Four bins of one row each: |0.6 - 0|, |0.1 - 0|, |0.8 - 1|, |0.3 - 1|.
    assert got["ece"] == pytest.approx((0.6 + 0.1 + 0.2 + 0.7) / 4)
    # P(2) = 0.9 - 0.6, P(1) = 1 - 0.2, P(4) = 0.7, P(3) = 0.3 - 0.1.
    assert got["nll"] == pytest.approx(-sum(math.log(q) for q in (0.3, 0.8, 0.7, 0.2)) / 4)


def test_nll_is_that_of_monotone_probabilities_and_stays_finite() -> None:
    crossing = np.array([[0.2, 0.6]])
    assert ordinal_metrics(crossing, np.array([1]), 3)["nll"] == pytest.approx(-math.log(0.6))
    # Level 2 has no probability at all once P(y > 1) and P(y > 2) are pooled.
    assert ordinal_metrics(crossing, np.array([2]), 3)["nll"] == pytest.approx(-math.log(1e-12))


def test_kappa_weighs_by_distance_in_levels_even_where_a_level_does_not_occur() -> None:
    # Levels 1, 2 and 4 only: the step from 2 to 4 is two levels, not one.
    labels, predicted = [1, 2, 4, 4], [1, 4, 4, 2]
    y, z = np.array(labels), np.array(predicted)
    by_hand = 1 - ((y - z) ** 2).mean() / ((y[:, None] - z[None, :]) ** 2).mean()
    assert ordinal_metrics(certain(predicted, 4), y, 4)["quadratic_kappa"] == pytest.approx(by_hand)


def test_what_the_data_do_not_define_is_none_and_warns_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_class = ordinal_metrics(certain([1, 1], 4), np.array([1, 1]), 4)
        constant = ordinal_metrics(np.full((3, 3), 0.5), np.array([1, 2, 4]), 4)
        empty = ordinal_metrics(np.zeros((0, 3)), np.zeros(0, dtype=int), 4)
    assert [one_class[name] for name in ("auc", "spearman", "quadratic_kappa")] == [None] * 3
    assert constant["spearman"] is None
    assert {value for name, value in empty.items() if name != "n"} == {None}
    json.dumps([one_class, constant, empty], allow_nan=False)


def test_the_positive_class_is_the_upper_half_of_the_scale() -> None:
    assert [first_positive(k) for k in (2, 3, 4, 5)] == [2, 3, 3, 4]


def test_reliability_bins_have_equal_mass_and_true_shares() -> None:
    rng = np.random.default_rng(0)
    middle = rng.random(1003)
    p = np.stack([np.ones(1003), middle, np.zeros(1003)], axis=1)
    labels = np.where(rng.random(1003) < middle, 3, 2)
    bins = reliability_bins(p, labels, 4)
    assert [b["count"] for b in bins] == [101] * 3 + [100] * 7
    assert [b["predicted"] for b in bins] == sorted(b["predicted"] for b in bins)
    assert sum(b["count"] * b["observed"] for b in bins) == pytest.approx((labels > 2).sum())
    ece = ordinal_metrics(p, labels, 4)["ece"]
    assert ece is not None
    assert ece < 0.06
    overconfident = ordinal_metrics(np.where(p > 0.5, 1.0, 0.0), labels, 4)["ece"]
    assert overconfident is not None
    assert overconfident > 0.2


def test_bad_inputs_raise_instead_of_giving_a_number() -> None:
    with pytest.raises(RewardUnavailableError, match="1 of 2"):
        ordinal_metrics(np.array([[0.1], [np.nan]]), np.array([1, 2]), 2)
    with pytest.raises(UserError, match="label 5 in row 1"):
        ordinal_metrics(np.zeros((2, 3)), np.array([1, 5]), 4)
    with pytest.raises(ValueError, match="shape"):
        ordinal_metrics(np.zeros((2, 4)), np.array([1, 2]), 4)


def drawn(n: int, k: int, seed: int, *, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that may cross and tie, and labels that partly follow them."""
    rng = np.random.default_rng(seed)
    latent = 1.5 * rng.normal(size=(n, 1))
    p = expit(latent - np.linspace(-1, 1, k - 1) + 0.4 * rng.normal(size=(n, k - 1)))
    return p.round(decimals), 1 + (latent + rng.logistic(size=(n, 1)) > np.linspace(-1, 1, k - 1)).sum(axis=1)


@pytest.mark.parametrize(
    ("k", "n", "decimals"), [(2, 40, 1), (3, 7, 1), (4, 203, 1), (4, 60, 9), (5, 1, 9), (10, 80, 2)]
)
def test_metrics_of_resamples_equal_those_of_the_rows_written_out(k: int, n: int, decimals: int) -> None:
    p, y = drawn(n, k, seed=k, decimals=decimals)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=12)
    # One resample that is one row over and over, which leaves rank metrics undefined.
    counts[0] = n * (np.arange(n) == 0)
    fast = Reweighted(p, y, k).metrics(counts)
    for i, count in enumerate(counts):
        rows = np.repeat(np.arange(n), count)
        slow = ordinal_metrics(p[rows], y[rows], k)
        assert {*fast, "n"} == set(slow)
        for name, values in fast.items():
            expected = slow[name]
            if expected is None:
                assert np.isnan(values[i]), name
            else:
                assert values[i] == pytest.approx(expected, abs=1e-9), name


def test_intervals_cover_known_values_as_often_as_they_say() -> None:
    # Normal logits at -0.5 and 0.5, labels half and half: accuracy Phi(0.5) and AUC Phi(1 / sqrt(2)).
    truth = {"accuracy": ndtr(0.5), "auc": ndtr(1 / math.sqrt(2)), "accuracy_gt_1": ndtr(0.5)}
    hits = dict.fromkeys(truth, 0)
    for seed in range(100):
        rng = np.random.default_rng([7, seed])
        y = rng.integers(1, 3, size=200)
        p = expit(rng.normal(size=200) + y - 1.5)[:, None]
        got = bootstrap(p, y, 2, resamples=300, seed=seed)
        for name, value in truth.items():
            interval = got[name]
            assert interval is not None
            hits[name] += interval[0] <= value <= interval[1]
    assert all(85 <= count <= 100 for count in hits.values()), hits


def test_intervals_hold_the_estimate_narrow_with_rows_and_widen_with_level() -> None:
    p, y = drawn(4000, 4, seed=1, decimals=9)
    estimate = ordinal_metrics(p, y, 4)
    many = bootstrap(p, y, 4, resamples=400, seed=0)
    few = bootstrap(p[:250], y[:250], 4, resamples=400, seed=0)
    sure = bootstrap(p, y, 4, resamples=400, seed=0, level=0.99)
    assert list(many) == [name for name in estimate if name != "n"]
    for name in many:
        wide, narrow, wider, value = few[name], many[name], sure[name], estimate[name]
        assert wide is not None
        assert narrow is not None
        assert wider is not None
        assert value is not None
        assert wider[0] <= narrow[0] < narrow[1] <= wider[1]
        if name != "ece":
            assert narrow[0] < value < narrow[1], name
            # 16 times the rows: a quarter of the width.
            assert 2.5 < (wide[1] - wide[0]) / (narrow[1] - narrow[0]) < 6.5, name


def test_resampling_is_fixed_by_the_seed() -> None:
    p, y = drawn(50, 4, seed=2, decimals=9)
    first = bootstrap(p, y, 4, resamples=50, seed=3)
    assert first == bootstrap(p, y, 4, resamples=50, seed=3)
    assert first != bootstrap(p, y, 4, resamples=50, seed=4)


def test_an_interval_needs_half_of_the_resamples() -> None:
    # The one positive of nine rows is missing from a third of the resamples.
    p = np.linspace(0.1, 0.9, 9)[:, None]
    usual = bootstrap(p, np.array([1] * 8 + [2]), 2, resamples=500, seed=0)
    assert usual["auc"] is not None
    none = bootstrap(p, np.array([1] * 9), 2, resamples=500, seed=0)
    assert none["auc"] is None
    assert none["quadratic_kappa"] is not None
    # Of two rows about half of the resamples have both: sometimes more, sometimes fewer than half of 51.
    seeds = [bootstrap(p[[0, 8]], np.array([1, 2]), 2, resamples=51, seed=seed)["auc"] for seed in range(40)]
    assert {interval is None for interval in seeds} == {True, False}
    assert {interval for interval in seeds if interval is not None} == {(1.0, 1.0)}


def test_no_rows_and_no_resamples_have_no_intervals() -> None:
    p, y = drawn(20, 3, seed=0, decimals=9)
    for got in (bootstrap(p, y, 3, resamples=0, seed=0), bootstrap(p[:0], y[:0], 3, resamples=9, seed=0)):
        assert set(got.values()) == {None}
        assert {"mae", "nll", "accuracy_gt_2"} <= set(got)


def test_many_resamples_are_worked_on_in_parts_without_losing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    from wildreward_ray.reward import metrics

    p, y = drawn(30, 4, seed=4, decimals=9)
    sizes: list[int] = []
    compute = Reweighted.metrics

    def noted(self: Reweighted, counts: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(counts))
        return compute(self, counts)

    monkeypatch.setattr(Reweighted, "metrics", noted)
    monkeypatch.setattr(metrics, "_CHUNK", 30 * 8)
    bootstrap(p, y, 4, resamples=21, seed=0)
    assert sizes == [8, 8, 5]
