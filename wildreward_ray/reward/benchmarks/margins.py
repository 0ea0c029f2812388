"""Accuracy on the pairs that a reward model tells apart clearly: the further apart two scores, the surer the order.

The paper keeps the pairs whose scores differ by at least a threshold (arXiv 2602.08829, section on calibration). A threshold is
in the model's own units. A table of thresholds therefore compares ordinal models, whose score always runs from 1 to the
number of levels, but says nothing about a model with scores of another size. `margin_curve` gives accuracy by the share of pairs
that is kept: it is the same for any rescaling of the scores, and compares any two models.

A pair with equal scores has a margin of 0 and is not in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.reward.benchmarks.estimate import Estimate, draws, estimate, ratio
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Item

Ints = NDArray[np.int64]

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)
"""Those of the paper, for scores in 1..4."""


@dataclass(frozen=True)
class PairScores:
    """Scores of a right and a wrong response of one item, for every pair of a benchmark.

    Attributes:
        right: [P] float64, finite.
        wrong: [P] float64, finite.
        item: [P] which item a pair is of, as its position among all items.
    """

    right: Floats
    wrong: Floats
    item: Ints

    @property
    def gap(self) -> Floats:
        """[P] score of the right response less that of the wrong one."""
        return self.right - self.wrong

    def __len__(self) -> int:
        return len(self.item)


def pair_scores(benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Floats]) -> PairScores:
    """The scores of the benchmark's pairs, in the order of the items.

    Args:
        scores: for every item, its responses' scores [R], float64 and finite.
    """
    right: list[float] = []
    wrong: list[float] = []
    owner: list[int] = []
    for number, (item, own) in enumerate(zip(items, scores, strict=True)):
        for better, worse in benchmark.pairs(item):
            right.append(float(own[better]))
            wrong.append(float(own[worse]))
            owner.append(number)
    return PairScores(np.array(right, np.float64), np.array(wrong, np.float64), np.array(owner, np.int64))


def pair_summary(benchmark: Benchmark, pairs: PairScores, *, resamples: int, seed: int) -> dict[str, Any]:
    """What the pairs are, and the share in order.

    Returns:
        `are`: text; `n`: pairs; `accuracy`, `low`, `high`: share of pairs whose right response scores higher and its 95 %
        interval, None without pairs; `ties`: pairs with equal scores.
    """
    found = _accuracy(pairs, [0.0], resamples, seed)[0] if len(pairs) else Estimate(None, None, None)
    return {
        "are": benchmark.pairs_are,
        "n": len(pairs),
        "accuracy": found.value,
        "low": found.low,
        "high": found.high,
        "ties": int((pairs.gap == 0).sum()),
    }


def margin_table(
    pairs: PairScores, *, resamples: int, seed: int, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, Any]]:
    """Accuracy on the pairs whose scores differ by at least a threshold.

    Args:
        thresholds: in units of the scores, not negative.
        resamples: of the items, for the intervals, >= 1.
        seed: not negative.

    Returns:
        For every threshold `threshold`, `pairs` (how many are kept), `coverage` (their share), `accuracy` (share of them in
        order), and `low` and `high`, its 95 % interval from a bootstrap over items, since the pairs of one item go
        together. Undefined values are None. Empty without pairs.
    """
    if len(pairs) == 0:
        return []
    margin = np.abs(pairs.gap)
    kept = [int((margin >= threshold).sum()) for threshold in thresholds]
    return [
        {
            "threshold": float(threshold),
            "pairs": count,
            "coverage": count / len(pairs),
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
        }
        for threshold, count, found in zip(thresholds, kept, _accuracy(pairs, thresholds, resamples, seed), strict=True)
    ]


def margin_curve(pairs: PairScores, points: int = 100) -> list[dict[str, float]]:
    """Accuracy by the share of pairs that is kept when those with the smallest margins are left out.

    Pairs with one margin are kept or left out together, so that there may be fewer points than were asked for.

    Returns:
        At most `points` of `coverage`, `accuracy` (share of the kept pairs in order) and `threshold` (the smallest margin that
        is kept), by rising coverage; the last has all pairs. Empty without pairs.
    """
    n = len(pairs)
    if n == 0:
        return []
    margin = np.abs(pairs.gap)
    order = np.argsort(-margin, kind="stable")
    falling = margin[order]
    in_order = np.cumsum(pairs.gap[order] > 0)
    # Where a run of equal margins ends: only there is "all pairs with at least this margin" what was summed up.
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    wanted = np.arange(1, points + 1) * n / points - 1
    chosen = np.unique(ends[np.searchsorted(ends, np.ceil(wanted - 1e-9))])
    return [
        {
            "coverage": float((end + 1) / n),
            "accuracy": float(in_order[end] / (end + 1)),
            "threshold": float(falling[end]),
        }
        for end in chosen
    ]


def _accuracy(pairs: PairScores, thresholds: Sequence[float], resamples: int, seed: int) -> list[Estimate]:
    """Share of the pairs beyond every threshold that are in order."""
    gap = pairs.gap
    kept = np.abs(gap)[:, None] >= np.asarray(thresholds)
    items, unit = np.unique(pairs.item, return_inverse=True)
    by_item = np.zeros((len(items), 2 * len(thresholds)))
    np.add.at(by_item, unit.reshape(-1), np.concatenate([kept & (gap > 0)[:, None], kept], axis=1).astype(float))

    def shares(weights: Floats) -> Floats:
        sums = weights @ by_item
        return ratio(sums[:, : len(thresholds)], sums[:, len(thresholds) :])

    values = shares(np.ones((1, len(items))))[0]
    samples = np.concatenate([shares(weights) for weights in draws(("",) * len(items), resamples, seed)])
    return [estimate(value, samples[:, i]) for i, value in enumerate(values)]
