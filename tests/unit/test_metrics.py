"""Metrics against values worked out by hand, and None where the data define none."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.reward.metrics import first_positive, ordinal_metrics, reliability_bins


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
