"""Drift of scores: against the formula on windows kept in full, and what a shift and a stable stream must show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wildreward_ray.reward.drift import BINS, ScoreDrift


def scores(n: int, mean: float = 2.5, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(mean, 0.5, n), 1, 4)


def psi_of(reference: np.ndarray, latest: np.ndarray, levels: int) -> float:
    """The formula, bin by bin."""
    total = 0.0
    edges = [1 + i * (levels - 1) / BINS for i in range(BINS + 1)]
    for i in range(BINS):
        last = i == BINS - 1
        p, q = (
            (sum(edges[i] <= s and (s < edges[i + 1] or last) for s in part) + 0.5) / (len(part) + 0.5 * BINS)
            for part in (reference, latest)
        )
        total += (q - p) * math.log(q / p)
    return total


@pytest.mark.parametrize("sizes", [[1], [7, 300, 1, 50], [2000]])
def test_any_cutting_into_batches_gives_what_full_windows_give(sizes: list[int]) -> None:
    window, all_scores = 150, np.concatenate([scores(400), scores(777, 3.0, seed=1)])
    drift, done, turn = ScoreDrift(4, window), 0, 0
    while done < len(all_scores):
        size = sizes[turn % len(sizes)]
        drift.extend(all_scores[done : done + size])
        done, turn = min(done + size, len(all_scores)), turn + 1
        if done >= 2 * window:
            reference, latest = all_scores[:window], all_scores[done - window : done]
            assert drift.psi() == pytest.approx(psi_of(reference, latest, 4), abs=1e-12)
            assert drift.mean_shift() == pytest.approx((latest.mean() - reference.mean()) / reference.std(), abs=1e-9)
        assert drift.mean() == pytest.approx(all_scores[max(0, done - window) : done].mean())


def test_there_is_no_drift_before_two_full_windows() -> None:
    drift = ScoreDrift(4, 100)
    assert drift.mean() is None
    drift.extend(scores(199))
    assert (drift.psi(), drift.mean_shift()) == (None, None)
    drift.extend(scores(1))
    assert drift.psi() is not None
    assert drift.mean_shift() is not None


def test_a_stable_stream_stays_near_its_noise_and_a_shift_of_a_level_is_loud() -> None:
    window = 1000
    noise = []
    for seed in range(50):
        drift = ScoreDrift(4, window)
        drift.extend(scores(2 * window, seed=seed))
        noise.append(drift.psi())
    # About 2 (B - 1) / n; the outermost bins are hardly used here.
    assert 0.008 < float(np.mean(np.array(noise, dtype=float))) < 0.025
    drift.extend(scores(window, 3.5, seed=99))
    shifted, shift = drift.psi(), drift.mean_shift()
    assert shifted is not None
    assert shift is not None
    assert shifted > 1
    assert 1.5 < shift < 2.1


def test_a_window_that_shifts_back_is_stable_again() -> None:
    drift = ScoreDrift(4, 500)
    drift.extend(scores(500))
    drift.extend(scores(500, 3.5, seed=1))
    drift.extend(scores(500, seed=2))
    psi = drift.psi()
    assert psi is not None
    assert psi < 0.1


def test_both_ends_of_the_scale_are_scores() -> None:
    drift = ScoreDrift(10, 2)
    drift.extend([1.0, 10.0, 10.0, 1.0])
    assert drift.psi() == 0


def test_bins_that_empty_and_bins_that_fill_give_a_finite_index() -> None:
    drift = ScoreDrift(2, 100)
    drift.extend([1.05] * 100)
    drift.extend([1.95] * 100)
    psi = drift.psi()
    assert psi is not None
    assert 5 < psi < 20


def test_a_reference_of_equal_scores_has_no_standard_deviation_to_measure_in() -> None:
    drift = ScoreDrift(4, 1000)
    drift.extend([1.1] * 1000)
    drift.extend(scores(1000))
    assert drift.mean_shift() is None
    assert drift.psi() is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.5, 4.5])
def test_what_is_no_score_is_refused_and_leaves_no_trace(bad: float) -> None:
    drift = ScoreDrift(4, 100)
    drift.extend([2.0])
    with pytest.raises(ValueError, match=r"not in \[1, 4\]"):
        drift.extend([3.0, bad])
    assert drift.mean() == 2.0


def test_too_small_a_number_is_named() -> None:
    with pytest.raises(ValueError, match="window is 1"):
        ScoreDrift(4, 1)
