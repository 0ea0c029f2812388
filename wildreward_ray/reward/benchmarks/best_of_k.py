"""How good the best of k replies is, by a model's scores, exactly: over all choices of k of the K replies that there are."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.reward.benchmarks.items import Floats


def best_of_curve(correct: NDArray[np.bool_], scores: Floats) -> Floats:
    """How often the reply with the best score among k is right; replies that share it are as likely to be taken.

    Where a replies score above a value that b replies share, the best of k has this value with probability
    (C(K - a, k) - C(K - a - b, k)) / C(K, k), and each of the b is as likely to be it.

    Args:
        correct: [K] whether each is right.
        scores: [K] finite.

    Returns:
        [K] for k = 1 .. K.
    """
    none_of = _none_of(len(correct))
    _, level, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    shares = np.bincount(level.ravel(), weights=correct.astype(np.float64)) / sizes
    above = np.concatenate([[0], np.cumsum(sizes)])
    curve: Floats = shares @ (none_of[above[:-1]] - none_of[above[1:]])
    return curve


def some_right_curve(correct: NDArray[np.bool_]) -> Floats:
    """[K] how often a right reply is among k, for k = 1 .. K: the curve of a perfect model."""
    curve: Floats = 1 - _none_of(len(correct))[int(correct.sum())]
    return curve


@cache
def _none_of(size: int) -> Floats:
    """[K + 1, K] at (m, k - 1): how often k of K replies have none of m given ones, C(K - m, k) / C(K, k)."""
    return np.array(
        [[math.comb(size - m, k) / math.comb(size, k) for k in range(1, size + 1)] for m in range(size + 1)]
    )
