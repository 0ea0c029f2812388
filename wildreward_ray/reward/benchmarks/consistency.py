"""Whether a reward model's score means the same thing for every prompt.

A pair asks only which of two replies to one prompt is better. Filtering data or setting a threshold needs more: that a
score of a right reply to any prompt is above that of a wrong reply to any other. The paper measures it by the area under the
ROC curve of raw scores, pooled across prompts (arXiv 2602.08829, "cross-sample consistency").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.reward.benchmarks.estimate import defined, draws, estimate, ratio
from wildreward_ray.reward.benchmarks.items import Floats, Item

Ints = NDArray[np.int64]
BINS = 20


class WeightedAuc:
    """Area under the ROC curve: the chance that a random right response scores above a random wrong one, ties counting half
    (Hanley & McNeil 1982, doi 10.1148/radiology.143.1.7063747). The responses are sorted once, for any number of resamples.

    Args:
        scores: [N] float64, finite.
        right: [N] bool.
        unit: [N] which unit a response is drawn with; default: each is a unit of its own.
    """

    def __init__(self, scores: Floats, right: NDArray[np.bool_], unit: Ints | None = None) -> None:
        units = np.arange(len(scores)) if unit is None else unit
        order = np.argsort(scores[~right], kind="stable")
        wrong = scores[~right][order]
        self._wrong, self._right = units[~right][order], units[right]
        self._below = np.searchsorted(wrong, scores[right], side="left")
        self._up_to = np.searchsorted(wrong, scores[right], side="right")

    def of(self, weights: Floats) -> Floats:
        """[R] areas when units count as often as weights [R, U] say; NaN where one side is missing."""
        # Resamples last: gathering and adding up then run over whole rows.
        by_unit = np.ascontiguousarray(weights.T)
        right = by_unit[self._right]
        wrong = np.zeros((len(self._wrong) + 1, by_unit.shape[1]))
        np.cumsum(by_unit[self._wrong], axis=0, out=wrong[1:])
        beaten = np.einsum("nr,nr->r", right, wrong[self._below])
        beaten += np.einsum("nr,nr->r", right, wrong[self._up_to])
        return ratio(beaten / 2, right.sum(axis=0) * wrong[-1])


def consistency(items: Sequence[Item], scores: Sequence[Floats], *, resamples: int, seed: int) -> dict[str, Any]:
    """How well one threshold on the score tells right responses from wrong ones, whatever the prompt.

    Args:
        scores: for every item, its responses' scores [R], float64 and finite.
        resamples: of the items, >= 1.
        seed: not negative.

    Returns:
        `auc`: of all responses pooled, with `low` and `high`, its 95 % interval from a bootstrap over items; `right`, `wrong`:
        responses; `within_auc`: the mean over items that have both of the share of their right x wrong pairs in order, ties
        counting half. What is lost from `within_auc` to `auc` is lost between prompts. Undefined values are None.
    """
    pooled, right, unit = _flat(items, scores)
    found = estimate(np.nan, np.full(1, np.nan))
    if right.any() and not right.all():
        area = WeightedAuc(pooled, right, unit)
        samples = [area.of(w) for w in draws(("",) * len(items), resamples, seed, width=len(pooled))]
        found = estimate(float(area.of(np.ones((1, len(items))))[0]), np.concatenate(samples))
    within = [share for share in map(_within, items, scores) if share is not None]
    return {
        "auc": found.value,
        "low": found.low,
        "high": found.high,
        "right": int(right.sum()),
        "wrong": int((~right).sum()),
        "within_auc": defined(float(np.mean(within))) if within else None,
    }


def distributions(items: Sequence[Item], scores: Sequence[Floats]) -> dict[str, Any]:
    """How the scores of right and of wrong responses are spread, in all and by group.

    Returns:
        `edges`: 21 edges of bins of equal width from the lowest score to the highest, which lies in the last bin; `right`,
        `wrong`: responses in each of the 20 bins; `groups`: the same two by group, in order of appearance.

    Raises:
        ValueError: no items.
    """
    pooled, right, unit = _flat(items, scores)
    edges = _edges(pooled)
    which = np.searchsorted(edges[1:-1], pooled, side="right")

    def counts(chosen: NDArray[np.bool_]) -> dict[str, list[int]]:
        sides = {"right": chosen & right, "wrong": chosen & ~right}
        return {name: np.bincount(which[side], minlength=BINS).tolist() for name, side in sides.items()}

    names = list(dict.fromkeys(item.group for item in items))
    number = {name: i for i, name in enumerate(names)}
    group = np.array([number[item.group] for item in items], np.int64)[unit]
    return {
        "edges": edges.tolist(),
        **counts(np.ones(len(pooled), dtype=bool)),
        "groups": {name: counts(group == number[name]) for name in names},
    }


def _flat(items: Sequence[Item], scores: Sequence[Floats]) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """[N] score, whether it is a right response's, and position of its item, for all responses."""
    sizes = [len(item.correct) for item in items]
    for item, own in zip(items, scores, strict=True):
        if len(own) != len(item.correct):
            raise ValueError(f"{len(own)} scores for the {len(item.correct)} responses of {item.id!r}")
    right = np.array([flag for item in items for flag in item.correct], dtype=bool)
    pooled = np.concatenate(scores).astype(np.float64) if len(scores) else np.empty(0)
    return pooled, right, np.repeat(np.arange(len(items)), sizes)


def _within(item: Item, scores: Floats) -> float | None:
    right = np.array(item.correct, dtype=bool)
    if right.all() or not right.any():
        return None
    gap = scores[right][:, None] - scores[~right]
    return float((gap > 0).mean() + (gap == 0).mean() / 2)


def _edges(scores: Floats) -> Floats:
    if len(scores) == 0:
        raise ValueError("a distribution of no scores")
    low, high = float(scores.min()), float(scores.max())
    # Equal scores, or scores that only rounding tells apart, have no bins of their own.
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)
