"""How well an ordinal reward model predicts levels, and how far its probabilities can be believed.

A metric that the data don't define (rank correlation of constant scores, AUC of one class) is None: never NaN, which
JSON can't carry, and never a number that was made up.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.core.scale import is_positive_label
from wildreward_ray.reward import ordinal

BINS = 10


def ordinal_metrics(p_gt: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> dict[str, float | None]:
    """Metrics of predicted P(y > j) against labels.

    The predicted level is the score 1 + sum_j p_j; where a metric needs a whole level it is rounded half up.

    Args:
        p_gt: [N, k-1] probabilities, finite.
        labels: [N] integers in 1..k.
        k: number of levels.

    Returns:
        `n`: rows. `mae`, `rmse`: of the score, in levels. `accuracy`, `quadratic_kappa` (quadratically weighted Cohen's
        kappa): of the rounded score. `spearman`: of score and label. `auc`: of the score, positive labels
        (`core.scale.is_positive_label`) against the rest. `accuracy_gt_j` for j in 1..k-1: share of rows where
        (p_j > 0.5) equals (label > j). `ece`: expected calibration error of P(label is positive), the mean over
        `reliability_bins`, weighted by rows, of |mean predicted - share observed|. Undefined values are None.

    Raises:
        UserError: a label outside 1..k.
        RewardUnavailableError: a probability is NaN or infinite.
        ValueError: shapes don't fit together.
    """
    p, y = _checked(p_gt, labels, k)
    n = len(y)
    result: dict[str, float | None] = {"n": n}
    score = ordinal.score(p)
    rounded = np.clip(np.floor(score + 0.5), 1, k).astype(np.int64)
    positive = y >= first_positive(k)
    some = n > 0
    result["mae"] = float(np.abs(score - y).mean()) if some else None
    result["rmse"] = float(np.sqrt(((score - y) ** 2).mean())) if some else None
    result["accuracy"] = float((rounded == y).mean()) if some else None
    result["quadratic_kappa"] = _kappa(y, rounded)
    varied = some and np.ptp(score) > 0 and np.ptp(y) > 0
    result["spearman"] = _finite(float(spearmanr(score, y).statistic)) if varied else None
    result["auc"] = float(roc_auc_score(positive, score)) if 0 < positive.sum() < n else None
    for j in range(1, k):
        result[f"accuracy_gt_{j}"] = float(((p[:, j - 1] > 0.5) == (y > j)).mean()) if some else None
    bins = reliability_bins(p, y, k)
    gap = sum(b["count"] * abs(b["predicted"] - b["observed"]) for b in bins)
    result["ece"] = gap / n if some else None
    return result


def reliability_bins(
    p_gt: NDArray[np.floating], labels: NDArray[np.integer], k: int, *, bins: int = BINS
) -> list[dict[str, float]]:
    """Predicted against observed share of positive labels, in bins of equal mass.

    The probability is P(y > j) with j the highest label that isn't positive, as given: no monotone repair. Rows are
    sorted by it (ties keep their order) and cut into min(`bins`, N) runs whose sizes differ by at most one row, the
    larger ones first.

    Returns:
        For every bin, from low to high: `predicted` (mean probability), `observed` (share of positive labels), `count`.
        Empty where there are no rows. Errors are those of `ordinal_metrics`.
    """
    p, y = _checked(p_gt, labels, k)
    if len(y) == 0:
        return []
    threshold = first_positive(k) - 1
    predicted, observed = p[:, threshold - 1], y > threshold
    order = np.argsort(predicted, kind="stable")
    return [
        {"predicted": float(predicted[rows].mean()), "observed": float(observed[rows].mean()), "count": len(rows)}
        for rows in np.array_split(order, min(bins, len(y)))
    ]


def first_positive(k: int) -> int:
    """The lowest label in 1..k that counts as positive."""
    return next(label for label in range(1, k + 1) if is_positive_label(label, k))


def _kappa(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float | None:
    # With one level on both sides all disagreement is impossible and kappa is 0/0.
    if len(labels) == 0 or len(np.union1d(labels, predicted)) < 2:
        return None
    return _finite(float(cohen_kappa_score(labels, predicted, weights="quadratic", labels=_span(labels, predicted))))


def _span(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[int]:
    # Left to itself scikit-learn numbers the levels that occur, and a gap of two levels would weigh as one.
    both = np.concatenate([labels, predicted])
    return list(range(int(both.min()), int(both.max()) + 1))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _checked(
    p_gt: NDArray[np.floating], labels: NDArray[np.integer], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, y = np.asarray(p_gt, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.shape != (len(y), k - 1):
        raise ValueError(f"probabilities of shape {p.shape} for {len(y)} labels of {k} levels")
    bad = int((~np.isfinite(p).all(axis=1)).sum())
    if bad:
        raise RewardUnavailableError(f"{bad} of {len(p)} predictions are NaN or infinite")
    outside = np.flatnonzero((y < 1) | (y > k))
    if outside.size:
        row = int(outside[0])
        raise UserError(f"label {int(y[row])} in row {row}: labels must lie in 1..{k}", flag="--levels")
    return p, y
