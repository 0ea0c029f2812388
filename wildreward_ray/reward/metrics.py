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
_LEAST_PROBABILITY = 1e-12
_RESAMPLES_STREAM = 0
# Rows times resamples that are worked on at once: ten or so arrays of 8 MB.
_CHUNK = 1 << 20


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
        `reliability_bins`, weighted by rows, of |mean predicted - share observed|. `nll`: mean of -log P(label), in
        nats, with `ordinal.level_probs` clipped at 1e-12. Undefined values are None.

    Raises:
        UserError: a label outside 1..k.
        RewardUnavailableError: a probability is NaN or infinite.
        ValueError: shapes don't fit together.
    """
    p, y = checked(p_gt, labels, k)
    n = len(y)
    result: dict[str, float | None] = {"n": n}
    score = ordinal.score(p)
    rounded = whole_level(score, k)
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
    result["nll"] = float(_row_nll(p, y).mean()) if some else None
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
    p, y = checked(p_gt, labels, k)
    if len(y) == 0:
        return []
    threshold = first_positive(k) - 1
    predicted, observed = p[:, threshold - 1], y > threshold
    order = np.argsort(predicted, kind="stable")
    return [
        {"predicted": float(predicted[rows].mean()), "observed": float(observed[rows].mean()), "count": len(rows)}
        for rows in np.array_split(order, min(bins, len(y)))
    ]


def bootstrap(
    p_gt: NDArray[np.floating],
    labels: NDArray[np.integer],
    k: int,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals of `ordinal_metrics` (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    section 13.3): rows are drawn with replacement, as many as there are.

    `ece` is a mean of absolute values: a resample adds noise to every bin and so has a larger ECE than the rows have on
    average. The interval of a well calibrated model can lie above its `ece`.

    Args:
        p_gt: [N, k-1] probabilities, finite.
        labels: [N] integers in 1..k.
        k: number of levels.
        resamples: how often rows are drawn.
        seed: not negative. Equal seeds give equal intervals.
        level: share of the resamples that an interval holds, in (0, 1).

    Returns:
        (low, high) of every metric but `n`. Resamples that don't define a metric are left out; None where those are
        more than half, and where there are no rows or no resamples. Errors are those of `ordinal_metrics`.
    """
    p, y = checked(p_gt, labels, k)
    n = len(y)
    names = [name for name in ordinal_metrics(p[:0], y[:0], k) if name != "n"]
    if n == 0 or resamples == 0:
        return dict.fromkeys(names)
    rng = np.random.default_rng([seed, _RESAMPLES_STREAM])
    rows, size = Reweighted(p, y, k), max(1, _CHUNK // n)
    parts = [rows.metrics(_draw(rng, min(size, resamples - done), n)) for done in range(0, resamples, size)]
    return {name: _interval(np.concatenate([part[name] for part in parts]), level) for name in names}


class Reweighted:
    """`ordinal_metrics` of many resamples of the same rows at once.

    A resample is how often it has each row, so the rows are sorted once: means are matrix products, ranks and the pairs
    that AUC counts come from cumulative counts.

    Args:
        p: [N, k-1] probabilities, `y`: [N] labels; both as `checked` gives them, N >= 1.
        k: number of levels.
    """

    def __init__(self, p: NDArray[np.float64], y: NDArray[np.int64], k: int) -> None:
        score = ordinal.score(p)
        level = whole_level(score, k)
        self._k, self._y = k, y
        self._positive = (y >= first_positive(k)).astype(np.int64)
        self._by_score = np.argsort(score, kind="stable")
        _, self._first, group = np.unique(score[self._by_score], return_index=True, return_inverse=True)
        self._group = group.reshape(-1)
        self._means: dict[str, NDArray[np.float64]] = {
            "mae": np.abs(score - y),
            "squared": (score - y) ** 2,
            "accuracy": (level == y).astype(float),
            **{f"accuracy_gt_{j}": ((p[:, j - 1] > 0.5) == (y > j)).astype(float) for j in range(1, k)},
            "nll": _row_nll(p, y),
        }
        # Sums of whole numbers are exact, so that a kappa of 0/0 is met as such.
        self._sums = np.stack([y, level, (y - level) ** 2, y**2 + level**2], axis=1).astype(float)
        predicted = p[:, first_positive(k) - 2]
        self._by_positive = np.argsort(predicted, kind="stable")
        self._gap = (predicted - self._positive)[self._by_positive]

    def metrics(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """[R] of every metric but `n` from counts [R, N] whose rows sum to N. NaN where a resample doesn't define one."""
        means = counts @ np.stack(list(self._means.values()), axis=1) / counts.shape[1]
        result = {name: means[:, i] for i, name in enumerate(self._means)}
        result["rmse"] = np.sqrt(result.pop("squared"))
        sorted_counts = counts[:, self._by_score]
        result["quadratic_kappa"] = self._kappa(counts)
        result["spearman"] = self._spearman(sorted_counts)
        result["auc"] = self._auc(sorted_counts)
        result["ece"] = self._ece(counts[:, self._by_positive])
        return result

    def _kappa(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        # 1 - observed / expected disagreement; both are moments, with (i - j)^2 = i^2 + j^2 - 2ij.
        y, level, squared, squares = (counts @ self._sums).T
        n = counts.shape[1]
        return 1 - _ratio(n * squared, n * squares - 2 * y * level)

    def _spearman(self, sorted_counts: NDArray[np.int64]) -> NDArray[np.float64]:
        n = sorted_counts.shape[1]
        y = self._y[self._by_score]
        of_score = np.add.reduceat(sorted_counts, self._first, axis=1)
        of_label = np.stack([sorted_counts @ (y == label) for label in range(1, self._k + 1)], axis=1)
        score_rank, label_rank = _centred_ranks(of_score, n), _centred_ranks(of_label, n)
        # Of one group of equal scores only the sum of its label ranks matters.
        label_sums = np.add.reduceat(sorted_counts * label_rank[:, y - 1], self._first, axis=1)
        both = (score_rank * label_sums).sum(axis=1)
        spread = (of_score * score_rank**2).sum(axis=1) * (of_label * label_rank**2).sum(axis=1)
        return _ratio(both, np.sqrt(spread))

    def _auc(self, sorted_counts: NDArray[np.int64]) -> NDArray[np.float64]:
        positive = np.add.reduceat(sorted_counts * self._positive[self._by_score], self._first, axis=1)
        negative = np.add.reduceat(sorted_counts, self._first, axis=1) - positive
        below = np.cumsum(negative, axis=1) - negative / 2
        return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))

    def _ece(self, sorted_counts: NDArray[np.int64]) -> NDArray[np.float64]:
        resamples, n = sorted_counts.shape
        gap = np.repeat(np.tile(self._gap, resamples), sorted_counts.ravel()).reshape(resamples, n)
        sizes = [len(rows) for rows in np.array_split(np.arange(n), min(BINS, n))]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        ece: NDArray[np.float64] = np.abs(np.add.reduceat(gap, starts, axis=1)).sum(axis=1) / n
        return ece


def first_positive(k: int) -> int:
    """The lowest label in 1..k that counts as positive."""
    return next(label for label in range(1, k + 1) if is_positive_label(label, k))


def whole_level(score: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The level in 1..k nearest to each score, halves rounded up."""
    return np.clip(np.floor(score + 0.5), 1, k).astype(np.int64)


def _row_nll(p: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    of_label = np.take_along_axis(ordinal.level_probs(p), (y - 1)[:, None], axis=1)[:, 0]
    # One label that was given no probability at all must not make the mean infinite.
    nll: NDArray[np.float64] = -np.log(np.maximum(of_label, _LEAST_PROBABILITY))
    return nll


def _draw(rng: np.random.Generator, resamples: int, n: int) -> NDArray[np.int64]:
    """[resamples, n]: how often each of n rows is in a resample of n rows."""
    chosen = rng.integers(0, n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(chosen.ravel(), minlength=resamples * n).reshape(resamples, n)


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _centred_ranks(counts: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """[R, G] mean rank, less that of all n rows, of groups of equal values in rising order that have `counts` rows."""
    ranks: NDArray[np.float64] = np.cumsum(counts, axis=1) - (counts - 1) / 2 - (n + 1) / 2
    return ranks


def _ratio(above: NDArray[np.floating], below: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
    return ratio


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


def checked(
    values: NDArray[np.floating], labels: NDArray[np.integer], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Predictions (logits or probabilities, [N, k-1]) as float64 and labels [N] as int64, both fit for use.

    Raises:
        UserError: a label outside 1..k.
        RewardUnavailableError: a prediction is NaN or infinite.
        ValueError: shapes don't fit together.
    """
    p, y = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.shape != (len(y), k - 1):
        raise ValueError(f"predictions of shape {p.shape} for {len(y)} labels of {k} levels")
    bad = int((~np.isfinite(p).all(axis=1)).sum())
    if bad:
        raise RewardUnavailableError(f"{bad} of {len(p)} predictions are NaN or infinite")
    outside = np.flatnonzero((y < 1) | (y > k))
    if outside.size:
        row = int(outside[0])
        raise UserError(f"label {int(y[row])} in row {row}: labels must lie in 1..{k}", flag="--levels")
    return p, y
