"""How far a benchmark's metrics, and the differences between two models, can be trusted.

Intervals are percentile bootstrap intervals (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3). Units
are drawn with replacement within their group, as many as the group has (the two-sample problem of section 8.3, for any number
of samples): a benchmark fixes how many prompts a group has and what the group weighs, so neither is random. A group of one
unit has no spread.

Differences of two models use the same resamples for both. Their p-values are those of a paired randomisation test (Noreen
1989, "Computer-Intensive Methods for Testing Hypotheses", chapter 2): if the models were alike, each unit's two outcomes
could be swapped. The observed labelling counts as one of those that were drawn, so that no p-value is 0 (Phipson & Smyth 2010,
"Permutation P-values Should Never Be Zero", doi 10.2202/1544-6115.1585).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Outcomes, some

LEVEL = 0.95
_COMPARE_FLAG = "--compare"
_RESAMPLES_STREAM, _SWAPS_STREAM = 0, 1
# Weights that are worked on at once; a few arrays of 8 MB.
_CHUNK = 1 << 20
# An interval over the few resamples that happen to define a metric would be made up.
_LEAST_DEFINED = 0.9
# Two orders of adding the same numbers differ by less; a swap that changes nothing must count as no smaller than what was seen.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A metric.

    Attributes:
        value: on all units; None where they don't define it.
        low, high: its interval; None where there is no value or where less than nine tenths of the resamples define one.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A metric of two models.

    Attributes:
        a, b: its values; None where the units don't define them.
        difference: a - b.
        low, high: 95 % interval of the difference; None as in `Estimate`.
        p: two-sided; None where there is no difference or where less than nine tenths of the swaps define one.
    """

    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None


def measure(
    benchmark: Benchmark, outcomes: Outcomes, *, resamples: int, seed: int, level: float = LEVEL
) -> dict[str, Estimate]:
    """The benchmark's metrics and their intervals.

    Args:
        outcomes: [U] units, U >= 1.
        resamples: how often units are drawn, >= 1.
        seed: not negative; equal seeds give equal intervals.
        level: share of the resamples that an interval holds, in (0, 1).

    Returns:
        Estimates by metric, in the benchmark's order.

    Raises:
        ValueError: no units.
    """
    units = Counter(outcomes.groups)
    values = _on_all(benchmark, outcomes, units)
    drawn = _joined(
        _metrics(benchmark, outcomes, weights, units) for weights in draws(outcomes.groups, resamples, seed)
    )
    return {name: estimate(value, drawn[name], level) for name, value in values.items()}


def compare(benchmark: Benchmark, a: Outcomes, b: Outcomes, *, resamples: int, seed: int) -> dict[str, Difference]:
    """The benchmark's metrics of two models, and how sure their differences are.

    Args:
        a, b: outcomes of the same [U] units in the same order, U >= 1.
        resamples: how often units are drawn, and how often their outcomes are swapped, >= 1.
        seed: not negative; equal seeds give equal intervals and p-values.

    Returns:
        Differences a - b by metric, in the benchmark's order.

    Raises:
        UserError: the two have other units, or measure other things.
        ValueError: no units.
    """
    _check_alike(a, b)
    units = Counter(a.groups)
    of_a, of_b = (_on_all(benchmark, outcomes, units) for outcomes in (a, b))
    drawn = _joined(
        _less(_metrics(benchmark, a, weights, units), _metrics(benchmark, b, weights, units))
        for weights in draws(a.groups, resamples, seed)
    )
    swapped = _joined(_swapped(benchmark, a, b, resamples, seed))
    result = {}
    for name in of_a:
        found = estimate(of_a[name] - of_b[name], drawn[name])
        result[name] = Difference(
            a=defined(of_a[name]),
            b=defined(of_b[name]),
            difference=found.value,
            low=found.low,
            high=found.high,
            p=_p_value(found.value, swapped[name]),
        )
    return result


def draws(groups: Sequence[str], resamples: int, seed: int, *, width: int | None = None) -> Iterator[Floats]:
    """How often each of [U] units is in each resample, drawn with replacement within the units' groups.

    Args:
        groups: [U] the group of every unit, U >= 1.
        width: numbers that the caller works on per resample; default: U. It sets how many resamples come at once.

    Yields:
        [r, U] float64 weights, `resamples` rows in all. In every row a group's weights sum to the units it has.

    Raises:
        ValueError: no units.
    """
    if not groups:
        raise ValueError("a resample of no units")
    rng = np.random.default_rng([seed, _RESAMPLES_STREAM])
    rows = list(_rows(groups).values())
    for size in _sizes(resamples, width or len(groups)):
        weights = np.empty((size, len(groups)))
        for own in rows:
            n = len(own)
            chosen = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
            weights[:, own] = np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n)
        yield weights


def estimate(value: float, samples: Floats, level: float = LEVEL) -> Estimate:
    """A value and the percentile interval of [R] values on resamples; NaN stands for undefined."""
    found = defined(value)
    known = samples[np.isfinite(samples)]
    if found is None or len(known) == 0 or len(known) < _LEAST_DEFINED * len(samples):
        return Estimate(found, None, None)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(found, float(low), float(high))


def defined(value: float) -> float | None:
    """The value, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    result: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return result


def _on_all(benchmark: Benchmark, outcomes: Outcomes, units: Mapping[str, int]) -> dict[str, float]:
    """The metrics when every unit counts once."""
    if not outcomes.ids:
        raise ValueError("no units to measure")
    found = _metrics(benchmark, outcomes, np.ones((1, len(outcomes.ids))), units)
    return {name: float(values[0]) for name, values in found.items()}


def _metrics(benchmark: Benchmark, outcomes: Outcomes, weights: Floats, units: Mapping[str, int]) -> dict[str, Floats]:
    """[R] values of every metric when units count as often as weights [R, U] say."""
    if benchmark.whole is not None:
        return benchmark.whole(outcomes, weights)
    known = np.isfinite(outcomes.values)
    filled, counted = np.where(known, outcomes.values, 0.0), known.astype(float)
    means = {}
    for group, rows in _rows(outcomes.groups).items():
        own = weights[:, rows]
        means[group] = ratio(own @ filled[rows], own @ counted[rows])
    return benchmark.combine(means, units)


def _swapped(benchmark: Benchmark, a: Outcomes, b: Outcomes, resamples: int, seed: int) -> Iterator[dict[str, Floats]]:
    """[r] differences a - b after every unit's outcomes were swapped with probability 1/2."""
    rng = np.random.default_rng([seed, _SWAPS_STREAM])
    units = Counter(a.groups)
    # A swap is a choice of weights for the units of both models, so metrics that are no means need no other way in.
    both = Outcomes(a.groups * 2, (*a.ids, *b.ids), a.names, np.concatenate([a.values, b.values]))
    for size in _sizes(resamples, len(both.ids)):
        swap = rng.integers(0, 2, size=(size, len(a.ids)), dtype=np.int8).astype(float)
        yield _less(
            _metrics(benchmark, both, np.concatenate([1 - swap, swap], axis=1), units),
            _metrics(benchmark, both, np.concatenate([swap, 1 - swap], axis=1), units),
        )


def _p_value(difference: float | None, swapped: Floats) -> float | None:
    known = swapped[np.isfinite(swapped)]
    if difference is None or len(known) < _LEAST_DEFINED * len(swapped):
        return None
    as_large = int((np.abs(known) >= abs(difference) - _ROUNDING).sum())
    return (1 + as_large) / (1 + len(known))


def _check_alike(a: Outcomes, b: Outcomes) -> None:
    if a.names != b.names:
        raise UserError(f"one evaluation measures {some(a.names)}, another {some(b.names)}", flag=_COMPARE_FLAG)
    if (a.ids, a.groups) == (b.ids, b.groups):
        return
    only_a, only_b = (
        [name for name in own.ids if name not in others]
        for own, others in ((a, frozenset(b.ids)), (b, frozenset(a.ids)))
    )
    parts = [f"only one has {some(names)}" for names in (only_a, only_b) if names]
    if not parts:
        where = next(i for i in range(len(a.ids)) if (a.ids[i], a.groups[i]) != (b.ids[i], b.groups[i]))
        parts = [f"unit {where + 1} is {a.ids[where]!r} in one and {b.ids[where]!r} in another"]
    raise UserError(
        f"evaluations of {len(a.ids)} and {len(b.ids)} units that are not the same: {'; '.join(parts)}",
        flag=_COMPARE_FLAG,
        hint="measure both on the same data with the same --limit",
    )


def _rows(groups: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return rows


def _sizes(resamples: int, width: int) -> Iterator[int]:
    """Resamples that are worked on at a time."""
    step = max(1, _CHUNK // width)
    for done in range(0, resamples, step):
        yield min(step, resamples - done)


def _joined(parts: Iterable[dict[str, Floats]]) -> dict[str, Floats]:
    """Metrics [R] of all resamples from those of their chunks."""
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _less(a: Mapping[str, Floats], b: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: values - b[name] for name, values in a.items()}
