"""How far the metrics of several models, and their differences, can be trusted: a paired bootstrap over held-out rows.

Each resample draws as many rows as there are, with replacement, and the same ones for all models; a metric is averaged over the
models of one variant that differ by their seed (percentile intervals: Efron & Tibshirani 1993, "An Introduction to the
Bootstrap", section 13.3). The intervals tell how the results depend on the held-out rows, not on the seeds: for those there
is the standard deviation over seeds. Rows of one conversation are taken for independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.reward.metrics import Reweighted, checked

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Metrics that are compared, and whether more is better.
COMPARED = {"mae": False, "auc": True, "spearman": True}
_LEVEL = 0.95
# Most resampled rows that are held at a time.
_CHUNK = 1 << 20
# An interval over the few resamples that happen to define a metric would be made up.
_LEAST_DEFINED = 0.9


@dataclass(frozen=True)
class Estimate:
    """A metric, or a difference of one.

    Attributes:
        mean: over seeds, on all rows.
        seed_sd: standard deviation over seeds; None with one seed.
        low, high: 95 % interval; None where less than nine tenths of the resamples define the metric.
    """

    mean: float
    seed_sd: float | None
    low: float | None
    high: float | None


Estimates = dict[str, dict[str, Estimate | None]]


def estimates(
    predictions: Mapping[str, Sequence[Floats]], labels: Ints, k: int, *, resamples: int, seed: int
) -> tuple[Estimates, Estimates]:
    """Metrics of every variant, and their differences from the first one.

    Args:
        predictions: variant -> [N, k-1] P(label > j) of each seed; the same seeds in the same order for every variant.
        labels: [N] in 1..k, N >= 1.
        k: number of levels.
        resamples: of the rows.
        seed: of the resampling.

    Returns:
        Estimates by variant and metric (`COMPARED`), and the same for the differences, without the first variant. None where
        the rows don't define a metric (AUC of one class, rank correlation of constant scores).

    Raises:
        UserError, RewardUnavailableError, ValueError: see `reward.metrics.checked`.
    """
    rng = np.random.default_rng(seed)
    n = len(labels)
    models = {name: [Reweighted(*checked(p, labels, k), k) for p in seeds] for name, seeds in predictions.items()}
    step = max(1, _CHUNK // n)
    whole = _by_seed(models, np.ones((1, n), np.int64))
    drawn = [
        _by_seed(models, rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - done)))
        for done in range(0, resamples, step)
    ]
    first = next(iter(models))
    own: Estimates = {name: {} for name in models}
    differences: Estimates = {name: {} for name in models if name != first}
    for metric in COMPARED:
        values = {name: whole[name][metric][:, 0] for name in models}
        samples = {name: np.concatenate([chunk[name][metric] for chunk in drawn], axis=1) for name in models}
        for name in models:
            own[name][metric] = _estimate(values[name], samples[name])
            if name != first:
                differences[name][metric] = _estimate(values[name] - values[first], samples[name] - samples[first])
    return own, differences


def _by_seed(models: Mapping[str, Sequence[Reweighted]], counts: Ints) -> dict[str, dict[str, Floats]]:
    """[S, R] values of every variant and metric on R resamples, given as how often each row was drawn."""
    found: dict[str, dict[str, Floats]] = {}
    for name, seeds in models.items():
        by_seed = [model.metrics(counts) for model in seeds]
        found[name] = {metric: np.stack([values[metric] for values in by_seed]) for metric in COMPARED}
    return found


def _estimate(values: Floats, samples: Floats) -> Estimate | None:
    """Of [S] values on all rows and [S, R] values on resamples."""
    if not np.isfinite(values).all():
        return None
    means = samples.mean(axis=0)
    defined = means[np.isfinite(means)]
    low = high = None
    if len(defined) >= _LEAST_DEFINED * len(means):
        low, high = (float(x) for x in np.quantile(defined, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return Estimate(float(values.mean()), spread, low, high)
