"""Decoding of logits: the place where a wrong number would still look like a reward."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.reward import ordinal

Decoder = Literal["cumulative", "corn"]
DECODERS: tuple[Decoder, ...] = ("cumulative", "corn")


def test_score_is_the_mean_of_the_level_probabilities_even_for_crossing_thresholds() -> None:
    p = np.random.default_rng(0).random((500, 3))
    probs = ordinal.level_probs(p)
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    np.testing.assert_allclose(probs @ np.arange(1, 5), ordinal.score(p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 9])
def test_monotone_is_isotonic_regression_and_keeps_the_sum(m: int) -> None:
    p = np.random.default_rng(m).random((200, m))
    fitted = ordinal.monotone(p)
    expected = [IsotonicRegression(increasing=False).fit_transform(np.arange(m), row) for row in p]
    np.testing.assert_allclose(fitted, expected, atol=1e-12)
    np.testing.assert_allclose(fitted.sum(axis=1), p.sum(axis=1), atol=1e-12)
    assert (np.diff(fitted, axis=1) <= 0).all()


def test_rows_that_are_monotone_already_come_back_bit_for_bit() -> None:
    p = np.sort(np.random.default_rng(1).random((100, 5)), axis=1)[:, ::-1]
    mixed = np.concatenate([p, p[:, ::-1]])
    assert np.array_equal(ordinal.monotone(mixed)[:100], p)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("k", range(2, 11))
def test_scores_span_exactly_one_to_k(k: int, decoder: Decoder) -> None:
    extreme = ordinal.p_gt(np.array([[-1e4] * (k - 1), [1e4] * (k - 1)]), decoder=decoder)
    assert ordinal.score(extreme).tolist() == [1.0, float(k)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_logit_that_is_no_number_raises_and_names_the_rows(decoder: Decoder) -> None:
    logits = np.zeros((4, 3), dtype=np.float32)
    logits[1, 2], logits[3, 0] = np.nan, np.inf
    with pytest.raises(RewardUnavailableError, match=r"2 of 4 inputs \(rows 1, 3\)"):
        ordinal.p_gt(logits, decoder=decoder)


def test_cumulative_reads_every_logit_alone_and_corn_multiplies_conditions() -> None:
    logits = [0.5, -1.0, 2.0]
    p = [1 / (1 + math.exp(-x)) for x in logits]
    np.testing.assert_allclose(ordinal.p_gt(np.array([logits])), [p])
    chained = [p[0], p[0] * p[1], p[0] * p[1] * p[2]]
    np.testing.assert_allclose(ordinal.p_gt(np.array([logits]), decoder="corn"), [chained])


@pytest.mark.parametrize("k", range(2, 11))
def test_corn_never_crosses_and_its_score_is_the_mean_level(k: int) -> None:
    p = ordinal.p_gt(5 * np.random.default_rng(k).standard_normal((500, k - 1)), decoder="corn")
    assert (np.diff(p, axis=1) <= 0).all()
    assert np.array_equal(ordinal.monotone(p), p)
    np.testing.assert_allclose(ordinal.level_probs(p) @ np.arange(1, k + 1), ordinal.score(p), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", DECODERS)
def test_scale_and_shift_act_on_the_logits_of_their_threshold_before_decoding(decoder: Decoder) -> None:
    logits = np.random.default_rng(0).standard_normal((20, 3))
    scale, shift = (0.5, 1.0, 2.0), (0.1, -0.2, 0.3)
    changed = logits * np.array(scale) + np.array(shift)
    found = ordinal.p_gt(logits, decoder=decoder, scale=scale, shift=shift)
    np.testing.assert_allclose(found, ordinal.p_gt(changed, decoder=decoder))
    np.testing.assert_allclose(
        ordinal.p_gt(logits, decoder=decoder, scale=0.5), ordinal.p_gt(logits / 2, decoder=decoder)
    )


@pytest.mark.parametrize("wrong", [(1.0, 2.0), (1.0,), (1.0,) * 4])
def test_a_calibration_of_other_thresholds_is_refused_and_never_broadcast(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"scale of shape .*expected one number or 3"):
        ordinal.p_gt(np.zeros((2, 3)), scale=wrong)
    with pytest.raises(ValueError, match=r"shift of shape .*expected one number or 3"):
        ordinal.p_gt(np.zeros((2, 3)), shift=wrong)


def test_a_calibration_that_is_no_number_and_an_unknown_decoder_are_refused() -> None:
    with pytest.raises(ValueError, match="scale nan: it must be finite"):
        ordinal.p_gt(np.zeros((2, 3)), scale=math.nan)
    with pytest.raises(ValueError, match="decoder 'coral'"):
        ordinal.p_gt(np.zeros((2, 3)), decoder="coral")  # type: ignore[arg-type]
