"""How much every row of a dataset counts: by its level, by its user, and by how sure the judge was.

The parts multiply. Users and confidence come first and levels last, on the product of the others, so that `balanced`
levels have equal totals whatever else is set. A user's total holds for user weights alone; the other parts scale it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from wildreward_ray.core.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CONFIDENCE_FLAG = "--objective.confidence-weights"
# Judge probabilities are renormalised in double precision but stored as float32.
_SUM_TOLERANCE = 1e-3
# The rounding of float32 leaves even probabilities with a confidence around 1e-15. Taken for a number it would decide
# between rows that all say nothing once the weights are scaled to mean 1.
_LEAST_CONFIDENCE = 1e-12


def row_weights(
    labels: IntArray,
    k: int,
    *,
    class_weights: Literal["none", "balanced"],
    user_weights: Literal["none", "sqrt", "equal"],
    users: Sequence[str | None] | NDArray[np.object_] | None,
    confidence_weights: bool,
    level_probs: NDArray[np.floating] | None,
) -> FloatArray:
    """The weight of every row in the loss, of mean 1.

    Args:
        labels: [N] integers in 1..k.
        k: number of levels.
        class_weights: `balanced`: every level that occurs has the same total weight.
        user_weights: total weight of a user of n rows, n for `none`, sqrt(n) for `sqrt`, 1 for `equal`.
        users: [N] users; a row without one (None or an empty string) counts as a user of one row.
        confidence_weights: multiply by one minus the entropy of the row's level probabilities over log k: 1 where the
            judge was certain, 0 where all levels were alike to it.
        level_probs: [N, k] probabilities of the levels; read for `confidence_weights` only.

    Returns:
        [N] float64, none negative.

    Raises:
        UserError: there are no rows, a label lies outside 1..k, users or probabilities are asked for and not there, a
            row's probabilities are no distribution over k levels, or all rows (or all rows of a level that shall be
            balanced) have weight zero.
        ValueError: there is another number of users or of probabilities than of labels.
        TypeError: a user is neither a string nor None.
    """
    _check_labels(labels, k)
    weights = np.ones(len(labels))
    if user_weights != "none":
        counts = _rows_of_user(users, len(labels))
        weights /= np.sqrt(counts) if user_weights == "sqrt" else counts
    if confidence_weights:
        weights *= _confidence(level_probs, len(labels), k)
        if not weights.any():
            raise UserError(
                f"all {len(labels)} rows have weight zero: their level probabilities are even, the judge was never sure",
                flag=_CONFIDENCE_FLAG,
                hint="switch confidence weights off",
            )
    if class_weights == "balanced":
        weights /= _level_totals(weights, labels)[labels]
    scaled: FloatArray = weights * (len(weights) / weights.sum())
    return scaled


def _check_labels(labels: IntArray, k: int) -> None:
    if len(labels) == 0:
        raise UserError("the training set is empty", flag="--dataset")
    outside = (labels < 1) | (labels > k)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"label {int(labels[row])} in row {row}: labels must lie in 1..{k}",
            flag="--levels",
            hint="train with as many levels as the labels have",
        )


def _rows_of_user(users: Sequence[str | None] | NDArray[np.object_] | None, rows: int) -> FloatArray:
    """How many rows the user of every row has, [N]."""
    if users is not None and len(users) != rows:
        raise ValueError(f"{len(users)} users for {rows} labels")
    if users is None or not any(users):
        raise UserError(
            f"none of the {rows} rows names a user, so users can't be weighed",
            flag="--objective.user-weights",
            hint="leave it at none",
        )
    # Counter and map run their loops in C: no array of strings is made, which would be as wide as its longest name.
    counts: Counter[str | None] = Counter(users)
    for kind in set(map(type, counts)):
        # A missing value such as NaN would be taken for one user of many rows.
        if not issubclass(kind, (str, type(None))):
            raise TypeError(f"a user of type {kind.__name__}: users are strings, or None where a row has none")
    counts[None] = counts[""] = 1
    return np.fromiter(map(counts.__getitem__, users), dtype=np.float64, count=rows)


def _confidence(level_probs: NDArray[np.floating] | None, rows: int, k: int) -> FloatArray:
    """1 - H(p) / log k of every row, [N] in [0, 1]."""
    if level_probs is None:
        raise UserError("the dataset has no level_probs to tell how sure the judge was", flag=_CONFIDENCE_FLAG)
    if level_probs.ndim != 2 or len(level_probs) != rows:
        raise ValueError(f"level probabilities of shape {level_probs.shape} for {rows} labels")
    if level_probs.shape[1] != k:
        raise UserError(
            f"level probabilities of {level_probs.shape[1]} levels for a model of {k}",
            flag="--levels",
            hint="train with as many levels as the dataset has",
        )
    total = level_probs.sum(axis=1, dtype=np.float64)
    # Written so that NaN counts as wrong too.
    good = (level_probs.min(axis=1) >= 0) & (np.abs(total - 1) <= _SUM_TOLERANCE)
    if not good.all():
        row = int((~good).argmax())
        raise UserError(
            f"level probabilities {[round(float(p), 4) for p in level_probs[row]]} in row {row}: "
            "they must be non-negative and sum to 1",
            flag="--dataset",
        )
    entropy = np.zeros(rows)
    for level in range(k):
        # A column at a time: a copy of all of them in double precision would be the largest array here by far.
        entropy += entr(level_probs[:, level] / total)
    confidence = 1 - entropy / math.log(k)
    confidence[confidence < _LEAST_CONFIDENCE] = 0.0
    return confidence


def _level_totals(weights: FloatArray, labels: IntArray) -> FloatArray:
    """Total weight of every level, indexed by level; no level that occurs has none."""
    totals = np.bincount(labels, weights=weights).astype(np.float64)
    lost = np.flatnonzero((np.bincount(labels) > 0) & (totals == 0))
    if lost.size:
        raise UserError(
            f"all rows of level {lost[0]} have weight zero, so it can't weigh as much as the other levels",
            flag=_CONFIDENCE_FLAG,
            hint="switch confidence weights off, or set --objective.class-weights none",
        )
    return totals
