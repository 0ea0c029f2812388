"""How replies of a policy compare with those at its start, on prompts it never learns from.

Everything is averaged first over the replies of a prompt and then over prompts, and intervals come from resampling prompts:
replies to one prompt are alike, so to resample single replies would promise more certainty than there is (the cluster
bootstrap; Field and Welsh 2007, "Bootstrapping clustered data", J. R. Stat. Soc. B 69(3)). Shapes: P prompts, S replies each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEVEL = 0.95
_RESAMPLES = 2000
# Most resampled values that are held at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Evaluation:
    """Sampled replies to P prompts. `Evaluation(**dataclasses.asdict(e))` is `e` again, by way of JSON as well.

    Attributes:
        rewards: [P][S] of the replies that were scored. It is shorter where a reply had no text to score, and empty for a
            prompt without any reward; such a prompt counts in nothing but lengths and endings.
        lengths: [P][S] tokens of every reply.
        finished: [P][S] whether the policy ended the reply itself.

    Raises:
        ValueError: the three don't belong together, there is no prompt or one without a reply, or a reward is not finite.
    """

    rewards: Sequence[Sequence[float]]
    lengths: Sequence[Sequence[int]]
    finished: Sequence[Sequence[bool]]

    def __post_init__(self) -> None:
        for name in ("rewards", "lengths", "finished"):
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        if not len(self.rewards) == len(self.lengths) == len(self.finished) or not self.rewards:
            raise ValueError(
                f"rewards of {len(self.rewards)}, lengths of {len(self.lengths)} and finished of {len(self.finished)} prompts: "
                "they must be as many, and at least one"
            )
        for i, (rewards, lengths, finished) in enumerate(zip(self.rewards, self.lengths, self.finished, strict=True)):
            if not lengths or len(lengths) != len(finished) or len(rewards) > len(lengths):
                raise ValueError(
                    f"prompt {i}: {len(rewards)} rewards, {len(lengths)} lengths and {len(finished)} endings don't belong together"
                )
            if not all(map(math.isfinite, rewards)):
                raise ValueError(f"prompt {i}: rewards {list(rewards)} must be finite")

    @property
    def prompts(self) -> int:
        """Prompts with at least one reward."""
        return sum(bool(rewards) for rewards in self.rewards)

    @property
    def replies(self) -> int:
        """Replies with a reward."""
        return sum(map(len, self.rewards))

    @property
    def reward_by_prompt(self) -> list[float]:
        """Mean reward of every prompt that has one."""
        return [math.fsum(rewards) / len(rewards) for rewards in self.rewards if rewards]

    @property
    def reward_mean(self) -> float | None:
        """Mean over prompts; None where nothing was scored."""
        means = self.reward_by_prompt
        return math.fsum(means) / len(means) if means else None

    @property
    def length_mean(self) -> float:
        """Tokens of a reply, mean over prompts."""
        return _mean_of_means(self.lengths)

    @property
    def finished_share(self) -> float:
        """Share of replies that the policy ended itself, mean over prompts."""
        return _mean_of_means(self.finished)


class WinRate(NamedTuple):
    """A win rate in [0, 1] and its 95 % interval; None for what the prompts are too few to tell, see `interval`."""

    rate: float | None
    low: float | None
    high: float | None


def interval(values: Sequence[float], seed: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean over prompts: percentiles of its bootstrap over prompts.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. With few prompts it is too narrow: on 8
    normal values it holds the true mean in 89 of 100 cases, on 32 in 94 (measured).

    Args:
        values: [P], one a prompt.
        seed: of the resampling; the same values and seed give the same interval.

    Returns:
        Its ends; (None, None) with fewer than two prompts, since one prompt doesn't tell how much another would differ.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 2:
        return None, None
    rng = np.random.default_rng(abs(seed))
    step = max(1, _CHUNK // n)
    means = [
        array[rng.integers(0, n, size=(min(step, _RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, _RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def win_rate(before: Evaluation, after: Evaluation, *, seed: int = 0) -> WinRate:
    """How likely a random reply of `after` has a higher reward than a random reply of `before` to the same prompt.

    For a prompt with rewards b_1..b_S and a_1..a_T it is the share of wins among all S T couples, ties half:

        sum_ij ([a_j > b_i] + [a_j = b_i] / 2) / (S T)

    which is the Mann-Whitney statistic as a share; the rate is its mean over prompts. Replies need not be as many on both
    sides. A prompt without a reward on either side is left out.

    Args:
        before, after: of the same prompts in the same order.
        seed: see `interval`.

    Raises:
        ValueError: the two have not as many prompts.
    """
    if len(before.rewards) != len(after.rewards):
        raise ValueError(f"{len(before.rewards)} prompts before and {len(after.rewards)} after can't be compared")
    rates = [
        _wins(np.asarray(old), np.asarray(new))
        for old, new in zip(before.rewards, after.rewards, strict=True)
        if old and new
    ]
    if not rates:
        return WinRate(None, None, None)
    return WinRate(math.fsum(rates) / len(rates), *interval(rates, seed))


def _wins(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """Share of couples in which the new one is higher, ties half."""
    return float((np.sign(new[:, None] - old[None, :]).mean() + 1) / 2)


def _mean_of_means(rows: Sequence[Sequence[float]]) -> float:
    return math.fsum(math.fsum(row) / len(row) for row in rows) / len(rows)
