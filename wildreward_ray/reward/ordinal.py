"""Ordinal levels 1..k as k-1 cumulative yes/no questions: targets and loss in torch, decoding in numpy.

Logit j (counted from 1) answers "is the level above j?", so p_j = sigmoid(logit_j) = P(y > j). The loss is binary cross
entropy on every threshold and the score is 1 + sum_j p_j = E[y], in [1, k] (arXiv 2602.08829, reward-model training;
the cumulative encoding goes back to Frank & Hall 2001, "A Simple Approach to Ordinal Classification").

The p_j are separate outputs and may cross. `monotone` repairs that without moving the score, so the level probabilities
and the score always tell the same mean.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from wildreward_ray.core.errors import RewardUnavailableError, UserError

FloatArray = NDArray[np.float64]

_MAX_ROWS_NAMED = 5
# Judge probabilities are renormalised in double precision but stored as float32.
_SUM_TOLERANCE = 1e-3


def encode_labels(labels: Tensor, k: int) -> Tensor:
    """Hard labels as cumulative targets (y > 1, ..., y > k-1).

    Args:
        labels: [B] integers in 1..k.
        k: number of levels.

    Returns:
        [B, k-1] float32 of zeros and ones.

    Raises:
        UserError: a label lies outside 1..k.
    """
    outside = (labels < 1) | (labels > k)
    if bool(outside.any()):
        row = int(outside.nonzero()[0].item())
        raise UserError(
            f"label {int(labels[row].item())} in row {row}: labels must lie in 1..{k}",
            flag="--levels",
            hint="train with as many levels as the labels have",
        )
    thresholds = torch.arange(1, k, device=labels.device)
    return (labels.unsqueeze(-1) > thresholds).float()


def soft_targets(level_probs: Tensor) -> Tensor:
    """A distribution over levels as cumulative targets P(y > j). One-hot rows give exactly `encode_labels`.

    Args:
        level_probs: [B, k] probabilities, column 0 is level 1, rows sum to 1.

    Returns:
        [B, k-1] float32 in [0, 1].

    Raises:
        UserError: a row is not a probability distribution.
    """
    probs = level_probs.float()
    # Written so that NaN counts as wrong too.
    good = (probs >= 0).all(dim=-1) & ((probs.sum(dim=-1) - 1).abs() <= _SUM_TOLERANCE)
    if not bool(good.all()):
        row = int((~good).nonzero()[0].item())
        raise UserError(
            f"level probabilities {[round(p, 4) for p in probs[row].tolist()]} in row {row}: "
            "they must be non-negative and sum to 1",
            flag="--dataset",
        )
    above = probs.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    return above.clamp(max=1.0)


def cumulative_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of every threshold, averaged over thresholds, in float32 whatever the model's dtype.

    Args:
        logits: [B, k-1].
        targets: [B, k-1] in [0, 1].

    Returns:
        [B] float32 in nats. The caller weighs and averages rows.

    Raises:
        ValueError: the shapes differ (they would broadcast to a wrong loss).
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} against targets of shape {tuple(targets.shape)}")
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(dim=-1)


def sigmoid_p_gt(logits: NDArray[np.floating], *, temperature: float = 1.0) -> FloatArray:
    """P(y > j) from logits.

    Args:
        logits: [N, k-1] of any float dtype.
        temperature: divides the logits (Guo et al. 2017, arXiv 1706.04599); 1 leaves them alone.

    Returns:
        [N, k-1] float64 in [0, 1].

    Raises:
        RewardUnavailableError: a logit is NaN or infinite. A reward that could not be computed is never a number.
    """
    values = _matrix(logits)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        named = ", ".join(str(row) for row in bad[:_MAX_ROWS_NAMED]) + (", ..." if bad.size > _MAX_ROWS_NAMED else "")
        raise RewardUnavailableError(
            f"the reward model gave NaN or infinite logits for {bad.size} of {len(values)} inputs (rows {named})"
        )
    probs: FloatArray = expit(values / temperature)
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
    probs: FloatArray = -np.diff(np.concatenate([ones, p, zeros], axis=1), axis=1)
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
