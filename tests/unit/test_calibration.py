"""Calibration against corrections that are known because the labels were simulated with them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.reward import ordinal
from wildreward_ray.reward.calibration import MIN_ROWS, SCALES, Decoder, Method, cross_fitted, fit
from wildreward_ray.reward.metrics import ordinal_metrics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
CUTS = np.array([-1.5, 0.0, 2.0])
METHODS: tuple[Method, ...] = ("temperature", "platt")
DECODERS: tuple[Decoder, ...] = ("cumulative", "corn")


def simulated(n: int, decoder: Decoder, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """True logits of four levels and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 1)) - CUTS
    if decoder == "cumulative":
        # One logistic noise for all thresholds: P(y > j) = P(noise > -logit_j) = sigmoid(logit_j).
        return logits, 1 + (logits + rng.logistic(size=(n, 1)) > 0).sum(axis=1)
    passed = rng.random(logits.shape) < expit(logits)
    return logits, 1 + np.cumprod(passed, axis=1).sum(axis=1)


def ece(p: FloatArray | None, y: IntArray) -> float:
    assert p is not None
    value = ordinal_metrics(p, y, 4)["ece"]
    assert value is not None
    return value


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_recovered(decoder: Decoder, temperature: float) -> None:
    logits, y = simulated(20_000, decoder)
    found = fit(logits * temperature, y, 4, decoder=decoder, method="temperature")
    assert len(set(found.scale)) == 1
    assert found.scale[0] * temperature == pytest.approx(1, rel=0.03)
    assert (found.shift, found.rows) == ((0.0, 0.0, 0.0), 20_000)


@pytest.mark.parametrize("decoder", DECODERS)
def test_known_slopes_and_shifts_are_recovered_threshold_by_threshold(decoder: Decoder) -> None:
    logits, y = simulated(40_000, decoder)
    scale, shift = np.array([0.5, 1.0, 2.5]), np.array([1.0, -0.7, 0.3])
    found = fit((logits - shift) / scale, y, 4, decoder=decoder, method="platt")
    np.testing.assert_allclose(found.scale, scale, rtol=0.06)
    np.testing.assert_allclose(found.shift, shift, atol=0.1)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_calibrated_logits_are_left_nearly_alone(decoder: Decoder, method: Method) -> None:
    logits, y = simulated(20_000, decoder, seed=1)
    found = fit(logits, y, 4, decoder=decoder, method=method)
    before = ordinal.p_gt(logits, decoder=decoder)
    after = ordinal.p_gt(logits, decoder=decoder, scale=found.scale, shift=found.shift)
    assert np.abs(after - before).max() < 0.03


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_ece_of_an_overconfident_model_falls(decoder: Decoder, method: Method) -> None:
    logits, y = simulated(4000, decoder, seed=2)
    before = ece(ordinal.p_gt(3 * logits, decoder=decoder), y)
    after = ece(cross_fitted(3 * logits, y, 4, decoder=decoder, method=method), y)
    assert before > 0.08
    assert after < before / 2


def test_platt_mends_a_shift_that_no_temperature_can() -> None:
    logits, y = simulated(4000, "cumulative", seed=3)
    left = [
        ece(cross_fitted(logits + 2, y, 4, decoder="cumulative", method=method), y)
        for method in ("temperature", "platt")
    ]
    assert left[1] < 0.03 < 0.1 < left[0]


def test_corn_is_fitted_on_the_rows_that_reached_the_threshold() -> None:
    logits, y = simulated(500, "corn", seed=4)
    nonsense = np.where(y[:, None] >= np.arange(1, 4), logits, 1000.0)
    for method in METHODS:
        expected = fit(logits, y, 4, decoder="corn", method=method)
        assert fit(nonsense, y, 4, decoder="corn", method=method) == expected
        assert fit(nonsense, y, 4, decoder="cumulative", method=method) != expected


def test_a_row_has_no_part_in_the_fit_that_corrects_it() -> None:
    logits, y = simulated(100, "cumulative", seed=5)
    other = logits.copy()
    other[17] = -logits[17]
    for method in METHODS:
        before = cross_fitted(logits, y, 4, decoder="cumulative", method=method, folds=5, seed=3)
        after = cross_fitted(other, y, 4, decoder="cumulative", method=method, folds=5, seed=3)
        assert before is not None
        assert after is not None
        same = (before == after).all(axis=1)
        # Its own fold of 20 was corrected without it, all other rows with it.
        assert same.sum() == 19
        assert not same[17]


def test_the_temperature_of_a_row_does_not_move_with_its_own_logits() -> None:
    logits, y = simulated(100, "cumulative", seed=5)
    applied = []
    for own in (1.0, -1.0):
        x = logits.copy()
        x[17] = own * logits[17]
        p = cross_fitted(x, y, 4, decoder="cumulative", method="temperature", seed=3)
        assert p is not None
        applied.append(logit(p[17]) / x[17])
    np.testing.assert_allclose(applied[0], applied[1], rtol=1e-9)


def test_cross_fitting_does_not_flatter_logits_that_know_nothing() -> None:
    rng = np.random.default_rng(6)
    logits, y = 5 * rng.normal(size=(30, 3)), rng.integers(1, 5, size=30)
    found = fit(logits, y, 4, decoder="cumulative", method="platt")
    flattered = ordinal_metrics(ordinal.p_gt(logits, scale=found.scale, shift=found.shift), y, 4)["nll"]
    crossed = cross_fitted(logits, y, 4, decoder="cumulative", method="platt")
    assert crossed is not None
    honest = ordinal_metrics(crossed, y, 4)["nll"]
    assert flattered is not None
    assert honest is not None
    assert honest > flattered + 0.02


def test_folds_depend_on_the_seed_alone_and_few_rows_get_fewer() -> None:
    logits, y = simulated(60, "cumulative", seed=7)

    def crossed(rows: int, seed: int) -> FloatArray | None:
        return cross_fitted(logits[:rows], y[:rows], 4, decoder="cumulative", method="platt", seed=seed)

    first, again, other = crossed(60, 0), crossed(60, 0), crossed(60, 1)
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for rows in range(MIN_ROWS, 12):
        p = crossed(rows, 0)
        assert p is not None
        assert p.shape == (rows, 3)
        assert ((p > 0) & (p < 1)).all()
    assert crossed(MIN_ROWS - 1, 0) is None


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_separable_labels_give_finite_numbers(decoder: Decoder, size: float) -> None:
    y = np.repeat([1, 2, 3, 4], 5)
    logits = size * np.where(y[:, None] > np.arange(1, 4), 1.0, -1.0)
    for method in METHODS:
        found = fit(logits, y, 4, decoder=decoder, method=method)
        assert all(SCALES[0] <= s <= SCALES[1] for s in found.scale)
        p = ordinal.p_gt(logits, decoder=decoder, scale=found.scale, shift=found.shift)
        assert np.isfinite(p).all()
        assert (p[y > 2, 1] >= p[y <= 2, 1].max()).all()


def test_platts_targets_keep_separable_labels_away_from_certainty() -> None:
    y = np.repeat([1, 2], 10)
    logits = np.where(y == 2, 3.0, -3.0)[:, None]
    found = fit(logits, y, 2, decoder="cumulative", method="platt")
    p = ordinal.p_gt(logits, scale=found.scale, shift=found.shift)[:, 0]
    np.testing.assert_allclose(p, np.where(y == 2, 11 / 12, 1 / 12), atol=1e-5)


def test_a_model_that_has_it_backwards_is_flattened_and_never_turned_round() -> None:
    logits, y = simulated(2000, "cumulative", seed=8)
    for method in METHODS:
        found = fit(-logits, y, 4, decoder="cumulative", method=method)
        assert found.scale == pytest.approx((SCALES[0],) * 3, rel=1e-3)
    # The shifts are the best that go with these slopes: predicted and observed shares agree (last: platt).
    p = ordinal.p_gt(-logits, scale=found.scale, shift=found.shift)
    np.testing.assert_allclose(p.mean(axis=0), [(y > j).mean() for j in (1, 2, 3)], atol=2e-3)


def test_a_threshold_with_one_answer_only_stays_as_it_is() -> None:
    logits, y = simulated(300, "cumulative", seed=9)
    y = np.minimum(y, 3)
    found = fit(3 * logits, y, 4, decoder="cumulative", method="platt")
    assert (found.scale[2], found.shift[2]) == (1.0, 0.0)
    assert found.scale[0] < 0.6
    # No row reaches the last threshold at all.
    corn = fit(3 * logits, np.minimum(y, 2), 4, decoder="corn", method="platt")
    assert (corn.scale[1:], corn.shift[1:]) == ((1.0, 1.0), (0.0, 0.0))


def test_logits_that_say_nothing_keep_their_scale() -> None:
    y = np.array([1, 2, 1, 1])
    zeros = np.zeros((4, 1))
    assert fit(zeros, y, 2, decoder="cumulative", method="temperature").scale == (1.0,)
    found = fit(zeros, y, 2, decoder="cumulative", method="platt")
    assert found.scale == (1.0,)
    # Targets 2/3 once and 1/5 three times.
    assert expit(found.shift[0]) == pytest.approx((2 / 3 + 3 / 5) / 4, rel=1e-5)


def test_bad_rows_raise_instead_of_being_fitted() -> None:
    with pytest.raises(ValueError, match="no rows"):
        fit(np.zeros((0, 3)), np.zeros(0, dtype=int), 4, decoder="corn", method="platt")
    with pytest.raises(UserError, match="label 5"):
        fit(np.zeros((1, 3)), np.array([5]), 4, decoder="corn", method="platt")
    with pytest.raises(RewardUnavailableError):
        cross_fitted(np.full((9, 3), np.nan), np.ones(9, dtype=int), 4, decoder="corn", method="platt")
