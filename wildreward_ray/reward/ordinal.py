"""From logits to a reward: k-1 logits as P(y > j), as probabilities of the levels 1..k, and as a score.

How logit j (counted from 1) is read depends on the loss it was trained with, see `objectives`:

- cumulative: p_j = sigmoid(logit_j) = P(y > j);
- corn: sigmoid(logit_j) = P(y > j | y > j-1), so p_j is the product of the first j (arXiv 2111.08851).

The score is 1 + sum_j p_j = E[y], in [1, k] (arXiv 2602.08829, reward-model training).

Cumulative p_j are separate outputs and may cross. `monotone` repairs that without moving the score, so the level
probabilities and the score always tell the same mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from wildreward_ray.core.errors import RewardUnavailableError

FloatArray = NDArray[np.float64]

_MAX_ROWS_NAMED = 5


def p_gt(
    logits: NDArray[np.floating],
    *,
    decoder: Literal["cumulative", "corn"] = "cumulative",
    scale: Sequence[float] | float = 1.0,
    shift: Sequence[float] | float = 0.0,
) -> FloatArray:
    """P(y > j) from logits, decoded from scale_j * logit_j + shift_j.

    Args:
        logits: [N, k-1] of any float dtype.
        decoder: how the logits are read, see the module's text.
        scale: one number for all thresholds or k-1 numbers; 1 / T is temperature scaling (Guo et al. 2017, arXiv
            1706.04599), and with `shift` it is Platt scaling of every threshold (Platt 1999).
        shift: likewise, added after scaling.

    Returns:
        [N, k-1] float64 in [0, 1]; non-increasing rows with `corn`.

    Raises:
        RewardUnavailableError: a logit is NaN or infinite. A reward that could not be computed is never a number.
        ValueError: the decoder is unknown, or scale or shift have another length than k-1 or are not finite.
    """
    if decoder not in ("cumulative", "corn"):
        raise ValueError(f"decoder {decoder!r}: it is cumulative or corn")
    values = _matrix(logits)
    factor = _each_threshold("scale", scale, values.shape[1])
    offset = _each_threshold("shift", shift, values.shape[1])
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        named = ", ".join(str(row) for row in bad[:_MAX_ROWS_NAMED]) + (", ..." if bad.size > _MAX_ROWS_NAMED else "")
        raise RewardUnavailableError(
            f"the reward model gave NaN or infinite logits for {bad.size} of {len(values)} inputs (rows {named})"
        )
    probs: FloatArray = expit(factor * values + offset)
    if decoder == "corn":
        np.cumprod(probs, axis=1, out=probs)
    return probs


def monotone(p_gt: NDArray[np.floating]) -> FloatArray:
    """The nearest non-increasing sequence to every row of P(y > j), in least squares.

    This is isotonic regression, the L2 projection that pool-adjacent-violators computes (Barlow et al. 1972;
    https://en.wikipedia.org/wiki/Isotonic_regression). Pooling replaces neighbours by their mean, so the sum of a row
    does not change and 1 + sum(p) stays the mean level. Rows that are monotone already come back bit for bit.

    Args:
        p_gt: [N, k-1] probabilities.

    Returns:
        [N, k-1] float64, every row non-increasing.
    """
    result = _matrix(p_gt).copy()
    rows = np.flatnonzero((np.diff(result, axis=1) > 0).any(axis=1))
    if rows.size == 0:
        return result
    x = result[rows]
    m = x.shape[1]
    # Min-max form of the same projection (Robertson, Wright & Dykstra 1988, section 1.4): g_i = min over s <= i of max
    # over t >= i of mean(x[s..t]). For k <= 10 that is at most 45 vector operations over all rows, where pooling would
    # be a Python loop a row.
    sums = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1)
    pooled = np.full_like(x, np.inf)
    for s in range(m):
        largest = np.full(len(x), -np.inf)
        for t in range(m - 1, s - 1, -1):
            # Walking t downwards, `largest` holds the max over t' >= t, which is what position i = t needs.
            largest = np.maximum(largest, (sums[:, t + 1] - sums[:, s]) / (t + 1 - s))
            pooled[:, t] = np.minimum(pooled[:, t], largest)
    # Rounding can leave two pooled neighbours one ulp apart in the wrong order.
    result[rows] = np.minimum.accumulate(pooled, axis=1).clip(0.0, 1.0)
    return result


def level_probs(p_gt: NDArray[np.floating]) -> FloatArray:
    """Probabilities of the k levels: differences of `monotone(p_gt)`, whose mean level is `score(p_gt)`.

    Args:
        p_gt: [N, k-1] probabilities P(y > j).

    Returns:
        [N, k] float64, non-negative, rows sum to 1; column 0 is level 1.
    """
    p = monotone(p_gt)
    ones, zeros = np.ones((len(p), 1)), np.zeros((len(p), 1))
    probs: FloatArray = np.concatenate([ones, p], axis=1) - np.concatenate([p, zeros], axis=1)
    return probs


def score(p_gt: NDArray[np.floating]) -> FloatArray:
    """The reward 1 + sum_j P(y > j), the expected level.

    Args:
        p_gt: [N, k-1] probabilities.

    Returns:
        [N] float64 in [1, k].
    """
    total: FloatArray = 1.0 + _matrix(p_gt).sum(axis=1)
    return total


def _matrix(values: NDArray[np.floating]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"array of shape {array.shape}: expected [rows, thresholds]")
    return array


def _each_threshold(name: str, value: Sequence[float] | float, thresholds: int) -> FloatArray:
    """One number for all thresholds, or one for each, as an array that multiplies [N, k-1]."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (thresholds,)):
        raise ValueError(f"{name} of shape {array.shape}: expected one number or {thresholds}, one for each threshold")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} {array.tolist()}: it must be finite")
    return array
