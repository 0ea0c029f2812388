"""Correcting a reward model's logits after training, so that its probabilities are the shares that are observed.

Two corrections, both fitted by maximum likelihood on the yes/no questions that the logits answer:

- `temperature` divides every logit by one T (Guo et al. 2017, arXiv 1706.04599, section 4.2);
- `platt` gives every threshold a slope and a shift of its own (Platt 1999, "Probabilistic Outputs for Support Vector
  Machines").

With the `cumulative` decoder logit j answers "y > j?" of every row; with `corn` it answers that of the rows with
y > j-1 only, which are then the ones it is fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from wildreward_ray.reward import ordinal
from wildreward_ray.reward.config import Calibration
from wildreward_ray.reward.metrics import checked

FloatArray = NDArray[np.float64]
Decoder = Literal["cumulative", "corn"]
Method = Literal["temperature", "platt"]

# Temperatures from 20 down to 0.05. Where the labels are separable the likelihood has no maximum inside any bounds.
SCALES = (1 / 20, 20.0)
MIN_ROWS = 4
_FOLDS_STREAM = 1


def fit(
    logits: NDArray[np.floating], labels: NDArray[np.integer], k: int, *, decoder: Decoder, method: Method
) -> Calibration:
    """The correction under which the labels are most likely.

    Both methods keep every scale within `SCALES`, hence positive: a correction never reverses a ranking. Platt's targets
    are his own, (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, so that separable labels give finite numbers. A
    threshold that has rows on one side only tells nothing about its slope and is left as it is by `platt`.

    Args:
        logits: [N, k-1], before any correction.
        labels: [N] integers in 1..k, N >= 1.
        k: number of levels.
        decoder: what the logits answer.
        method: `temperature` or `platt`.

    Raises:
        UserError: a label outside 1..k.
        RewardUnavailableError: a logit is NaN or infinite.
        ValueError: no rows, or shapes that don't fit together.
    """
    x, y = checked(logits, labels, k)
    if len(y) == 0:
        raise ValueError("a calibration of no rows")
    questions = list(_questions(x, y, k, decoder))
    if method == "temperature":
        scale = _temperature_scale(np.concatenate([q[0] for q in questions]), np.concatenate([q[1] for q in questions]))
        return Calibration(method=method, scale=(scale,) * (k - 1), shift=(0.0,) * (k - 1), rows=len(y))
    scales, shifts = zip(*(_platt(z, above) for z, above in questions), strict=True)
    return Calibration(method=method, scale=scales, shift=shifts, rows=len(y))


def cross_fitted(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    k: int,
    *,
    decoder: Decoder,
    method: Method,
    folds: int = 5,
    seed: int = 0,
) -> FloatArray | None:
    """P(y > j) of every row after a correction that was fitted without that row.

    What these probabilities score is what the correction does to new rows. Measured on the rows it was fitted on, it
    would look better than it is. Folds are random and have nearly equal shares of every label; with fewer than two rows
    a fold there are as many folds as that leaves, N // 2.

    Returns:
        [N, k-1] float64, or None for fewer than `MIN_ROWS` rows. Errors are those of `fit`.
    """
    x, y = checked(logits, labels, k)
    n = len(y)
    if n < MIN_ROWS:
        return None
    fold = _folds(y, min(folds, n // 2), seed)
    result = np.empty_like(x)
    for number in range(fold.max() + 1):
        out = fold == number
        found = fit(x[~out], y[~out], k, decoder=decoder, method=method)
        result[out] = ordinal.p_gt(x[out], decoder=decoder, scale=found.scale, shift=found.shift)
    return result


def _folds(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, _FOLDS_STREAM])
    fold = np.empty(len(labels), dtype=np.int64)
    # Dealt out in order of the label, at random within one.
    fold[np.lexsort((rng.random(len(labels)), labels))] = np.arange(len(labels)) % folds
    return fold


def _questions(
    x: FloatArray, y: NDArray[np.int64], k: int, decoder: Decoder
) -> Iterator[tuple[FloatArray, NDArray[np.bool_]]]:
    """For every threshold the logits of the rows it was asked of, and the true answers."""
    for j in range(1, k):
        asked = y > j - 1 if decoder == "corn" else np.ones(len(y), dtype=bool)
        yield x[asked, j - 1], y[asked] > j


def _cross_entropy(z: FloatArray, target: FloatArray | NDArray[np.bool_]) -> float:
    return float((np.logaddexp(0.0, z) - target * z).mean())


def _temperature_scale(z: FloatArray, above: NDArray[np.bool_]) -> float:
    def loss(log_scale: float) -> float:
        return _cross_entropy(np.exp(log_scale) * z, above)

    low, high = np.log(SCALES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    # Logits that are all zero are served alike by every temperature; they keep 1.
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def _platt(z: FloatArray, above: NDArray[np.bool_]) -> tuple[float, float]:
    positive, n = int(above.sum()), len(above)
    if positive in (0, n):
        return 1.0, 0.0
    target = np.where(above, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    # In units of the logits' own spread, slope and shift are of one size and the search is well conditioned.
    centre, spread = float(z.mean()), float(z.std()) or 1.0
    unit = (z - centre) / spread

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        value = at[0] * unit + at[1]
        wrong = expit(value) - target
        return _cross_entropy(value, target), np.array([(wrong * unit).mean(), wrong.mean()])

    # Convex in two unknowns, and started where the logits stand: what comes back is never less likely than those.
    found = minimize(
        loss,
        x0=np.array([spread, centre]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(SCALES[0] * spread, SCALES[1] * spread), (None, None)],
        options={"ftol": 1e-14, "gtol": 1e-8, "maxiter": 500},
    )
    scale = float(np.clip(found.x[0] / spread, *SCALES))
    return scale, float(found.x[1]) - scale * centre
