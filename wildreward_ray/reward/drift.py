"""Whether a reward model's scores are still spread as they were when it began to serve.

The first scores are the reference, the latest ones are compared with it. A shift says that the prompts, the policy or the way
inputs are rendered have changed, or that a policy is learning to please the model; it doesn't say which.

The population stability index over B bins, with p_i and q_i the shares of reference and latest scores in bin i, is

    PSI = sum_i (q_i - p_i) ln(q_i / p_i)

(Yurdakul 2018, https://scholarworks.wmich.edu/dissertations/3208, which gives the customary reading as well: below 0.1 little
has changed, above 0.25 much has). Scores that don't drift at all have a PSI of about 2 (B - 1) / n for windows of n scores, so
a window of 100 means nothing with ten bins and one of 1000 is 0.02 off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 10
# Counts have this much added in every bin (the prior of Jeffreys for a multinomial), as an empty one would make the index
# infinite. It is weak: a bin that empties still shows.
_PRIOR = 0.5


class ScoreDrift:
    """The first `window` scores against the last `window`, which begin after the first.

    Memory is one window of float64, and a score costs the same however many came before it.

    Args:
        levels: number of ordered levels K >= 2; scores lie in [1, K].
        window: number of scores compared, at least 2.
        bins: number of bins of equal width that [1, K] is cut into, at least 2.

    Raises:
        ValueError: a number is smaller than that.
    """

    def __init__(self, levels: int, window: int, bins: int = BINS) -> None:
        for name, value in (("levels", levels), ("window", window), ("bins", bins)):
            if value < 2:
                raise ValueError(f"{name} is {value}: it must be at least 2")
        self._levels, self._bins = levels, bins
        # The latest scores; `_at` is where the next one goes, `_rounds` how often the window has been filled.
        self._latest = np.zeros(window)
        self._at = self._rounds = 0
        self._sum = 0.0
        self._counts = np.zeros(bins, dtype=np.int64)
        self._reference = self._counts
        self._reference_mean = self._reference_sd = 0.0

    def extend(self, scores: Sequence[float] | NDArray[np.floating]) -> None:
        """Take in scores, in their order.

        Raises:
            ValueError: a score is not finite or not in [1, K]; none of them is taken in.
        """
        rest = np.asarray(scores, dtype=np.float64)
        bad = rest[~((rest >= 1) & (rest <= self._levels))]
        if bad.size:
            raise ValueError(f"the score {bad[0]} is not in [1, {self._levels}]")
        while rest.size:
            room = len(self._latest) - self._at
            self._put(rest[:room])
            rest = rest[room:]

    def mean(self) -> float | None:
        """Mean of the last scores, at most `window` of them. None where there are none."""
        held = len(self._latest) if self._rounds else self._at
        return self._sum / held if held else None

    def psi(self) -> float | None:
        """Population stability index, see the module's text; at least 0. None before 2 * `window` scores."""
        if self._rounds < 2:
            return None
        p, q = _shares(self._reference), _shares(self._counts)
        return float(np.sum((q - p) * np.log(q / p)))

    def mean_shift(self) -> float | None:
        """Mean of the last `window` scores minus that of the reference, in the reference's standard deviations.

        None before 2 * `window` scores, and where all scores of the reference are equal.
        """
        if self._rounds < 2 or self._reference_sd == 0:
            return None
        return (self._sum / len(self._latest) - self._reference_mean) / self._reference_sd

    def _put(self, scores: NDArray[np.float64]) -> None:
        """Take in no more scores than there is room for up to the window's end."""
        held = self._latest[self._at : self._at + scores.size]
        self._counts += self._binned(scores)
        self._sum += float(scores.sum())
        if self._rounds:
            self._sum -= float(held.sum())
        if self._rounds > 1:
            # Before that they are scores of the reference, which were never counted among the latest.
            self._counts -= self._binned(held)
        held[:] = scores
        self._at += scores.size
        if self._at == len(self._latest):
            self._turn()

    def _turn(self) -> None:
        self._at, self._rounds = 0, min(self._rounds + 1, 2)
        # Rounding errors of additions and subtractions would grow without an end.
        self._sum = float(self._latest.sum())
        if self._rounds == 1:
            self._reference, self._counts = self._counts, np.zeros_like(self._counts)
            self._reference_mean, self._reference_sd = float(self._latest.mean()), float(self._latest.std())
            # A thousand equal numbers have a mean that is off by a rounding error.
            if np.ptp(self._latest) == 0:
                self._reference_sd = 0.0

    def _binned(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        places = ((scores - 1) / (self._levels - 1) * self._bins).astype(np.int64)
        return np.bincount(np.minimum(places, self._bins - 1), minlength=self._bins)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    smoothed = counts.astype(np.float64) + _PRIOR
    return smoothed / float(smoothed.sum())
