"""The one place that knows what the levels mean and how judge levels become training labels.

The judge reads the user's next message into five ordered levels (arXiv 2602.08829, section on feedback levels). Training
uses K ordered labels 1..K. With the default K = 4 the neutral level is dropped and 1, 2, 4, 5 become 1, 2, 3, 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from wildreward_ray.core.errors import UserError

JUDGE_LEVELS = (1, 2, 3, 4, 5)
LEVEL_NAMES = {1: "rejection", 2: "correction", 3: "neutral", 4: "positive engagement", 5: "satisfaction"}
NEUTRAL = 3
MIN_POSITIVE = 4
MIN_K, MAX_K = 2, 10

# Judge level -> training label, for the label counts that the five judge levels can be folded into.
_FOLDS: dict[int, dict[int, int]] = {
    2: {1: 1, 2: 1, 4: 2, 5: 2},
    3: {1: 1, 2: 1, 3: 2, 4: 3, 5: 3},
    4: {1: 1, 2: 2, 4: 3, 5: 4},
    5: {1: 1, 2: 2, 3: 3, 4: 4, 5: 5},
}


def check_k(k: int) -> int:
    """Return `k` if it is a usable number of training labels, else raise `UserError`."""
    if not MIN_K <= k <= MAX_K:
        raise UserError(f"{k} levels: the number of ordered levels must lie in {MIN_K}..{MAX_K}", flag="--levels")
    return k


def training_label(level: int, k: int) -> int | None:
    """The training label in 1..k of a judge level in 1..5, or None where training drops that level.

    Raises:
        UserError: the five judge levels can't be folded into `k` labels (labels of one's own can have any K in 2..10).
    """
    if k not in _FOLDS:
        raise UserError(
            f"{k} levels: judge levels 1..5 fold into {', '.join(map(str, sorted(_FOLDS)))} training levels only",
            flag="--levels",
        )
    return _FOLDS[k].get(level)


def fold_probs(level_probs: Sequence[float], k: int) -> list[float] | None:
    """Judge probabilities over 1..5 as probabilities over training labels 1..k.

    Dropped levels lose their mass and the rest is renormalised. None where nothing is left to renormalise.

    Args:
        level_probs: five probabilities, index 0 is level 1.
    """
    folded = [0.0] * k
    for level, p in zip(JUDGE_LEVELS, level_probs, strict=True):
        label = training_label(level, k)
        if label is not None:
            folded[label - 1] += p
    total = sum(folded)
    return [p / total for p in folded] if total > 0 else None


def is_positive_label(label: int, k: int) -> bool:
    """Whether a training label lies in the upper half of the scale (the positive class of AUC)."""
    return 2 * label > k + 1
