"""How far the chance that a reward model gives a pair's order can be believed.

The chance that the higher-scored response of a pair is the right one is taken to be sigmoid(slope * margin): Platt scaling
(Platt 1999, "Probabilistic Outputs for Support Vector Machines") of the difference of two scores. It has no shift, because
which response is named first is arbitrary: naming them the other way round must turn p into 1 - p, which only a shift of 0
does. Since the slope is fitted, neither the unit of the scores nor a constant that is added to them matters.

The slope is fitted on half of the items and judged on the other half, over many random halves. Items are halved, not pairs:
the pairs of one item share responses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from wildreward_ray.reward.benchmarks.items import Floats
from wildreward_ray.reward.benchmarks.margins import PairScores

BINS = 10
MIN_PAIRS = 20
MAX_LOG_ODDS = 20.0
"""Where every pair is in order, the likelihood rises with the slope for ever. The slope then stops where a pair with the median
margin has these log odds, a chance of 1 - 2e-9."""
_SPLITS_STREAM = 2
_LOW, _HIGH = 5, 95


def pair_calibration(pairs: PairScores, *, splits: int, seed: int) -> dict[str, Any] | None:
    """Calibration on held-out pairs.

    The expected calibration error is that of Guo et al. 2017 (arXiv 1706.04599, section 2) over 10 bins of equal width of the
    confidence max(p, 1 - p), which lies in [0.5, 1]: the mean over pairs of |mean confidence - share in order| of their
    bin. A pair with equal scores has confidence 0.5 and counts as half in order, as a coin would decide it. Where the slope is 0,
    all confidences are 0.5 and the error is how far the share in order is from that. In finite data even a perfect model's
    error is above 0, the more so the fewer pairs there are.

    Args:
        splits: random halves, >= 1; each half is fitted on and judged in turn.
        seed: not negative; equal seeds give equal halves.

    Returns:
        `ece`: mean over splits of the mean over both halves; `ece_low`, `ece_high`: 5th and 95th percentile over splits;
        `splits`; `slope`: fitted on all pairs, in 1 / score units; `nll`: mean of -log(chance given to the right response), in
        nats, on held-out halves; `bins`: `predicted` (mean confidence), `observed` (share in order) and `count` of every
        bin with a pair in it, all splits pooled, so that the counts sum to pairs times splits.
        None for fewer than 20 pairs, fewer than two items, or scores that are equal in every pair.
    """
    gap = pairs.gap
    items, unit = np.unique(pairs.item, return_inverse=True)
    if len(pairs) < MIN_PAIRS or len(items) < 2 or not gap.any():
        return None
    rng = np.random.default_rng([seed, _SPLITS_STREAM])
    errors = np.empty(splits)
    held_out = np.empty((splits, len(pairs)))
    for split in range(splits):
        first = rng.permutation(len(items)) < len(items) // 2
        in_first = first[unit.reshape(-1)]
        halves = []
        for half in (in_first, ~in_first):
            held_out[split, half] = fit_slope(gap[~half]) * gap[half]
            halves.append(_error(_binned(held_out[split, half], gap[half])))
        errors[split] = np.mean(halves)
    low, high = np.percentile(errors, [_LOW, _HIGH])
    return {
        "ece": float(errors.mean()),
        "ece_low": float(low),
        "ece_high": float(high),
        "splits": splits,
        "slope": fit_slope(gap),
        "nll": float(np.logaddexp(0.0, -held_out).mean()),
        "bins": [
            {"predicted": float(predicted / count), "observed": float(observed / count), "count": int(count)}
            for predicted, observed, count in zip(*_binned(held_out.ravel(), np.tile(gap, splits)), strict=True)
            if count
        ],
    }


def fit_slope(gap: Floats) -> float:
    """The slope >= 0 under which the order of pairs is most likely, if a pair is in order with chance sigmoid(slope * gap).

    Args:
        gap: [P] score of the right response less that of the wrong one.

    Returns:
        In 1 / units of the gap. 0 where a higher score does not go with the right response, or there is no gap at all; where
        the likelihood has no maximum, see `MAX_LOG_ODDS`.
    """
    margin = np.abs(gap[gap != 0])
    if len(margin) == 0 or gap.sum() <= 0:
        return 0.0
    # In units of the median margin the root is of moderate size whatever the scores' own unit is.
    scale = float(np.median(margin))
    unit = gap / scale

    # The derivative of the negative log likelihood, which is convex: it rises with the slope, from below 0.
    def rise(slope: float) -> float:
        return -float((unit * expit(-slope * unit)).mean())

    if rise(MAX_LOG_ODDS) <= 0:
        return MAX_LOG_ODDS / scale
    return float(brentq(rise, 0.0, MAX_LOG_ODDS, xtol=1e-9)) / scale


def _binned(log_odds: Floats, gap: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """For every bin the sum of confidences, the number of pairs in order and the number of pairs."""
    confidence: Floats = expit(np.abs(log_odds))
    # By the scores and not by the log odds: a slope of 0 must not turn pairs that are out of order into coins.
    in_order = np.where(gap == 0, 0.5, gap > 0)
    which = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    return (
        np.asarray(np.bincount(which, weights=confidence, minlength=BINS), np.float64),
        np.asarray(np.bincount(which, weights=in_order, minlength=BINS), np.float64),
        np.bincount(which, minlength=BINS),
    )


def _error(bins: tuple[Floats, Floats, NDArray[np.int64]]) -> float:
    predicted, observed, count = bins
    return float(np.abs(predicted - observed).sum() / count.sum())
