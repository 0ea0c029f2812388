"""Everything that is measured of a reward model on its held-out rows, as one JSON-ready dict, and its calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.core.config.train import EvalSection
from wildreward_ray.reward import ordinal
from wildreward_ray.reward.calibration import Decoder, cross_fitted, fit
from wildreward_ray.reward.config import Calibration
from wildreward_ray.reward.metrics import bootstrap, checked, ordinal_metrics, reliability_bins, whole_level

SCORE_BINS = 20
# Names of the groups that no language and no origin has: rows of groups too small for metrics, and rows without a group.
OTHER = "other"
UNKNOWN = "unknown"

Groups = Sequence[str | None] | NDArray[np.object_]


def evaluate(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    k: int,
    decoder: Decoder,
    settings: EvalSection,
    languages: Groups | None,
    origins: Groups | None,
    seed: int,
) -> tuple[dict[str, Any], Calibration | None]:
    """Metrics of held-out rows with intervals, for groups of rows, and before and after calibration.

    Args:
        logits: [N, k-1] of the held-out rows, before any correction.
        labels: [N] integers in 1..k.
        k: number of levels.
        decoder: how the logits are read.
        settings: which calibration, how many resamples, and how large a group must be.
        languages: [N] language of every row, None where it isn't known; or None for all.
        origins: [N] where every row's label comes from, likewise.
        seed: of resamples and folds; not negative.

    Returns:
        The calibration, fitted on all rows; None where none is asked for or there are fewer than
        `calibration.MIN_ROWS` rows, whose effect could not be measured. And a dict without NaN of:

        - the metrics of `ordinal_metrics` before calibration, and `intervals`: {metric: [low, high] or None}, 95 %;
        - `calibration`: None, or {method, scale, shift, rows} with `ece`, `ece_interval` and `nll` of probabilities
          that were cross-fitted (`calibration.cross_fitted`), so that no row is judged by a fit it took part in;
        - `groups`: {"language": {name: metrics and intervals}, "origin": {...}} before calibration. Groups of fewer
          than `settings.min_group` rows are pooled as "other", and rows without one are "unknown"; a pool that is too
          small itself is left out, and `groups_left_out` has the number of its rows by kind of group;
        - `reliability`, and after (cross-fitted) calibration `reliability_calibrated`, or None: `reliability_bins`;
        - `confusion`: k x k counts, a row for every label and a column for every whole level (`whole_level`);
        - `scores`: {"edges": 21 edges over 1..k, "counts": for every label the rows in each of the 20 bins}.

    Raises:
        UserError: a label outside 1..k.
        RewardUnavailableError: a logit is NaN or infinite.
        ValueError: shapes or lengths don't fit together.
    """
    x, y = checked(logits, labels, k)
    p = ordinal.p_gt(x, decoder=decoder)
    score = ordinal.score(p)
    calibration, found, reliability = _calibrated(x, y, k, decoder, settings, seed)
    result: dict[str, Any] = {
        **_measured(p, y, k, settings, seed),
        "calibration": found,
        "groups": {},
        "groups_left_out": {},
        "reliability": reliability_bins(p, y, k),
        "reliability_calibrated": reliability,
        "confusion": _confusion(whole_level(score, k), y, k),
        "scores": _score_counts(score, y, k),
    }
    for kind, names in (("language", languages), ("origin", origins)):
        if names is None or len(y) == 0:
            continue
        groups, left_out = _pooled(names, len(y), settings.min_group)
        result["groups"][kind] = {name: _measured(p[rows], y[rows], k, settings, seed) for name, rows in groups.items()}
        result["groups_left_out"][kind] = left_out
    return result, calibration


def _measured(p: NDArray[np.float64], y: NDArray[np.int64], k: int, settings: EvalSection, seed: int) -> dict[str, Any]:
    intervals = bootstrap(p, y, k, resamples=settings.bootstrap, seed=seed)
    listed = {name: None if ends is None else list(ends) for name, ends in intervals.items()}
    return {**ordinal_metrics(p, y, k), "intervals": listed}


def _calibrated(
    x: NDArray[np.float64], y: NDArray[np.int64], k: int, decoder: Decoder, settings: EvalSection, seed: int
) -> tuple[Calibration | None, dict[str, Any] | None, list[dict[str, float]] | None]:
    """The correction, what it does to rows it was not fitted on, and their reliability."""
    if settings.calibration == "none":
        return None, None, None
    p = cross_fitted(x, y, k, decoder=decoder, method=settings.calibration, seed=seed)
    if p is None:
        return None, None, None
    calibration = fit(x, y, k, decoder=decoder, method=settings.calibration)
    measured = _measured(p, y, k, settings, seed)
    found = {
        **calibration.model_dump(mode="json"),
        "ece": measured["ece"],
        "ece_interval": measured["intervals"]["ece"],
        "nll": measured["nll"],
    }
    return calibration, found, reliability_bins(p, y, k)


def _pooled(names: Groups, n: int, least: int) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Rows of every group of at least `least` rows, largest group first and the pool last; and how many have none."""
    if len(names) != n:
        raise ValueError(f"{len(names)} group names for {n} rows")
    known = [name or UNKNOWN for name in names]
    sizes = Counter(known)
    large = sorted((name for name in sizes if sizes[name] >= least and name != OTHER), key=lambda g: (-sizes[g], g))
    of_name = {name: name if name in large else OTHER for name in sizes}
    pooled = np.array([of_name[name] for name in known], dtype=object)
    groups = {name: np.flatnonzero(pooled == name) for name in [*large, OTHER]}
    rest = len(groups[OTHER])
    if rest < max(least, 1):
        del groups[OTHER]
        return groups, rest
    return groups, 0


def _confusion(levels: NDArray[np.int64], y: NDArray[np.int64], k: int) -> list[list[int]]:
    counts: list[list[int]] = np.bincount((y - 1) * k + levels - 1, minlength=k * k).reshape(k, k).tolist()
    return counts


def _score_counts(score: NDArray[np.float64], y: NDArray[np.int64], k: int) -> dict[str, Any]:
    edges = np.linspace(1, k, SCORE_BINS + 1)
    counts = [np.histogram(score[y == label], bins=edges)[0].tolist() for label in range(1, k + 1)]
    return {"edges": edges.tolist(), "counts": counts}
