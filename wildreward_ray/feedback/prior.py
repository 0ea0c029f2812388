"""Correcting a judge's bias towards some verdict words.

A judge prefers some verdicts whatever it reads. Batch calibration (arXiv 2309.17249) takes the mean log-probability of
each verdict over the data as that preference and subtracts it. Here the mean is over the whole corpus, kept apart for each language
(a judge's preference differs between languages), so a label depends neither on how rows were batched nor on their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Groups with fewer rows take the mean over all rows: their own would be mostly noise.
MIN_GROUP_ROWS = 30


@dataclass
class PriorSum:
    """Running sums of verdict log-probabilities, by group. Adding rows in any order gives the same prior."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, group: str, logprobs: Sequence[float]) -> None:
        """Count one row's verdict log-probabilities."""
        self.add_many(group, logprobs, 1)

    def add_many(self, group: str, sums: Sequence[float], rows: int) -> None:
        """Count several rows, given the sums of their verdict log-probabilities."""
        total = self.sums.setdefault(group, [0.0] * len(sums))
        for i, value in enumerate(sums):
            total[i] += value
        self.counts[group] = self.counts.get(group, 0) + rows

    def finish(self) -> Prior:
        """The mean log-probabilities of every group that is large enough, and of all rows."""
        rows = sum(self.counts.values())
        if rows == 0:
            return Prior({}, None)
        overall = [sum(s[i] for s in self.sums.values()) / rows for i in range(len(next(iter(self.sums.values()))))]
        means = {
            group: [value / self.counts[group] for value in total]
            for group, total in sorted(self.sums.items())
            if self.counts[group] >= MIN_GROUP_ROWS
        }
        return Prior(means, overall)


@dataclass(frozen=True)
class Prior:
    """Mean verdict log-probabilities: of each group, and of everything (None: nothing to subtract)."""

    groups: Mapping[str, Sequence[float]]
    overall: Sequence[float] | None

    def probabilities(self, group: str, logprobs: Sequence[float], shares: Sequence[float] | None) -> list[float]:
        """Verdict probabilities with the prior taken out.

        Args:
            logprobs: log-probabilities of the verdicts.
            shares: expected share of every verdict, or None for equal shares.
        """
        mean = self.groups.get(group, self.overall)
        scores = list(logprobs) if mean is None else [value - m for value, m in zip(logprobs, mean, strict=True)]
        if shares is not None:
            scores = [s + math.log(p) for s, p in zip(scores, shares, strict=True)]
        return softmax(scores)


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities proportional to exp(scores), computed without overflow."""
    top = max(scores)
    exps = [math.exp(s - top) for s in scores]
    total = sum(exps)
    return [e / total for e in exps]


def entropy(probs: Sequence[float]) -> float:
    """Shannon entropy in nats."""
    return -sum(p * math.log(p) for p in probs if p > 0)
