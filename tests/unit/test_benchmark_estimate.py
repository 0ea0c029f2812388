"""Intervals that cover what they say, resamples that leave the groups alone, and p-values that are honest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import kstest, ttest_rel

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.benchmarks.estimate import Difference, Estimate, compare, draws, estimate, measure
from wildreward_ray.reward.benchmarks.items import Benchmark, Floats, Outcomes, Reading

Combine = Callable[[Mapping[str, Floats], Mapping[str, int]], dict[str, Floats]]
Whole = Callable[[Outcomes, Floats], dict[str, Floats]]


def by_units(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
    """The mean over units, and that of every group."""
    total = sum(units[group] for group in means)
    micro: Floats = np.add.reduce([mean[..., 0] * (units[group] / total) for group, mean in means.items()])
    return {"accuracy": micro, **{group: mean[..., 0] for group, mean in means.items()}}


def benchmark(combine: Combine = by_units, whole: Whole | None = None) -> Benchmark:
    def unused(*_: object) -> Outcomes:
        raise AssertionError("outcomes are given")

    return Benchmark(
        "b", "B", "https://example.org", (), lambda _: Reading(()), unused, combine, lambda _: (), "", whole
    )


def outcomes(groups: Mapping[str, object], names: tuple[str, ...] = ("right",)) -> Outcomes:
    """Units of groups, each with a value or a list of values."""
    rows = [(group, value) for group, values in groups.items() for value in np.atleast_1d(np.asarray(values))]
    values = np.array([value for _, value in rows], dtype=float).reshape(len(rows), 1)
    own = tuple(group for group, _ in rows)
    return Outcomes(own, tuple(f"{group}/{i}" for i, group in enumerate(own)), names, values)


def ends(found: Estimate | Difference) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def micro_whole(found: Outcomes, weights: Floats) -> dict[str, Floats]:
    return {"accuracy": weights @ found.values[:, 0] / weights.sum(axis=1)}


def test_every_resample_has_as_many_units_of_each_group_as_there_are() -> None:
    groups = ("a", "b", "a", "c", "b", "a")
    weights = np.concatenate(list(draws(groups, 500, 0)))
    assert weights.shape == (500, 6)
    for group, size in (("a", 3), ("b", 2), ("c", 1)):
        assert (weights[:, [g == group for g in groups]].sum(axis=1) == size).all()
    # A unit is absent with probability (1 - 1/3)^3 = 0.296 and there once on average.
    assert (weights[:, 0] == 0).mean() == pytest.approx(8 / 27, abs=0.06)
    assert weights[:, :3].mean(axis=0) == pytest.approx([1, 1, 1], abs=0.12)


def test_resamples_come_in_pieces_that_are_together_as_many_as_asked_for() -> None:
    pieces = list(draws(("a",) * 3000, 1000, 0))
    assert len(pieces) > 1
    assert sum(len(piece) for piece in pieces) == 1000
    assert max(piece.nbytes for piece in pieces) < 10e6
    # Pieces are not one draw over and over.
    assert not (pieces[0][0] == pieces[1][0]).all()


@pytest.mark.parametrize("whole", [None, micro_whole])
def test_a_difference_between_groups_is_no_spread(whole: Whole | None) -> None:
    found = measure(benchmark(whole=whole), outcomes({"a": [1.0] * 30, "b": [0.0] * 10}), resamples=300, seed=0)
    assert found["accuracy"] == Estimate(0.75, 0.75, 0.75)


@pytest.mark.parametrize("whole", [None, micro_whole])
def test_intervals_hold_the_truth_as_often_as_they_say(whole: Whole | None) -> None:
    """Were units drawn across the groups, whose means are far apart, intervals by `whole` would hold it 99.9 % of the time."""
    rng = np.random.default_rng(7)
    truth, held = 0.5 * 0.1 + 0.5 * 0.9, 0
    for seed in range(400):
        data = outcomes({"a": rng.random(100) < 0.1, "b": rng.random(100) < 0.9})
        found = measure(benchmark(whole=whole), data, resamples=300, seed=seed)["accuracy"]
        low, high = ends(found)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.975


def test_an_interval_is_as_wide_as_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = measure(benchmark(), outcomes({"a": values}), resamples=4000, seed=0, level=0.9)["accuracy"]
    low, high = ends(found)
    assert high - low == pytest.approx(2 * 1.645 * values.std() / 2000**0.5, rel=0.05)
    assert found.value == pytest.approx(values.mean())


def test_a_unit_that_says_nothing_is_left_out_of_the_mean() -> None:
    def columns(means: Mapping[str, Floats], units: Mapping[str, int]) -> dict[str, Floats]:
        return {"accuracy": means["a"][..., 0], "hard": means["a"][..., 1], "none": means["a"][..., 2]}

    nan = float("nan")
    values = np.array([[1, 1, nan], [0, nan, nan], [0, 0, nan], [0, 1, nan]])
    data = Outcomes(("a",) * 4, tuple("wxyz"), ("p", "q", "r"), values)
    found = measure(benchmark(columns), data, resamples=200, seed=0)
    assert found["accuracy"].value == 0.25
    assert found["hard"].value == pytest.approx(2 / 3)
    assert found["none"] == Estimate(None, None, None)
    json.dumps({name: asdict(value) for name, value in found.items()}, allow_nan=False)


def test_an_interval_that_few_resamples_define_is_none_and_the_value_stays() -> None:
    nan = float("nan")
    # The one unit that says something is in 1 - 0.9^10 = 65 % of the resamples.
    found = measure(benchmark(), outcomes({"a": [1.0] + [nan] * 9}), resamples=500, seed=0)["accuracy"]
    assert found == Estimate(1.0, None, None)
    assert estimate(0.5, np.array([nan] + [0.5] * 9)) == Estimate(0.5, 0.5, 0.5)
    assert estimate(0.5, np.array([nan, nan] + [0.5] * 8)) == Estimate(0.5, None, None)


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    data = outcomes({"a": np.random.default_rng(0).random(50)})
    first, again, other = (measure(benchmark(), data, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_no_units_are_refused() -> None:
    with pytest.raises(ValueError, match="no units"):
        measure(benchmark(), outcomes({}), resamples=100, seed=0)


def test_the_interval_of_a_paired_difference_is_narrower_than_that_of_two_samples() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random(400)
    a, b = (outcomes({"a": shared + rng.normal(scale=0.05, size=400)}) for _ in range(2))
    of_a, of_b = (measure(benchmark(), data, resamples=500, seed=0)["accuracy"] for data in (a, b))
    found = compare(benchmark(), a, b, resamples=500, seed=0)["accuracy"]
    width_a, width_b, width = (high - low for low, high in (ends(of_a), ends(of_b), ends(found)))
    assert width < 0.4 * (width_a**2 + width_b**2) ** 0.5
    assert (found.a, found.b) == (of_a.value, of_b.value)
    assert found.difference == pytest.approx(a.values.mean() - b.values.mean())


def test_p_values_of_models_that_are_alike_are_uniform() -> None:
    rng = np.random.default_rng(3)
    found = []
    for seed in range(250):
        # Correlated within a unit, and of another mean in every group.
        base = {"a": rng.normal(size=15), "b": 5 + rng.normal(size=25)}
        a, b = (outcomes({g: v + rng.normal(size=len(v)) for g, v in base.items()}) for _ in range(2))
        p = compare(benchmark(), a, b, resamples=199, seed=seed)["accuracy"].p
        assert p is not None
        found.append(p)
    assert kstest(found, "uniform").pvalue > 0.05
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_p_values_of_one_group_agree_with_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=200)
    b = a + 0.15 + rng.normal(size=200)
    found = compare(benchmark(), outcomes({"a": a}), outcomes({"a": b}), resamples=5000, seed=0)["accuracy"]
    assert found.p == pytest.approx(ttest_rel(a, b).pvalue, abs=0.01)
    assert found.difference == pytest.approx((a - b).mean())


@pytest.mark.parametrize("seed", range(4))
def test_p_is_exact_where_all_swaps_can_be_counted(seed: int) -> None:
    """Of the 2^6 swaps of six differences with one sign, none and all give a difference as large as what was seen.

    They do so up to rounding only, which would make p next to nothing if it counted.
    """
    rng = np.random.default_rng(seed)
    a = rng.random(6)
    b = a - 0.3 - 0.1 * rng.random(6)
    found = compare(benchmark(), outcomes({"a": a}), outcomes({"a": b}), resamples=4000, seed=0)["accuracy"]
    assert found.p == pytest.approx(2 / 64, abs=0.01)


def test_a_model_does_not_differ_from_itself_and_no_p_value_is_0() -> None:
    # Thirds: their sum depends on the order of adding them.
    a = outcomes({"a": np.arange(60) % 4 / 3, "b": np.arange(40) % 3 / 3})
    same = compare(benchmark(), a, a, resamples=500, seed=0)
    assert {(value.difference, value.low, value.high, value.p) for value in same.values()} == {(0.0, 0.0, 0.0, 1.0)}
    far = compare(benchmark(), a, Outcomes(a.groups, a.ids, a.names, a.values + 5), resamples=500, seed=0)["accuracy"]
    assert far.p == 1 / 501


def test_a_metric_that_one_model_does_not_define_has_no_difference() -> None:
    nan = float("nan")
    a, b = outcomes({"a": [1.0, 0.0], "b": [1.0, 1.0]}), outcomes({"a": [1.0, 0.0], "b": [nan, nan]})
    found = compare(benchmark(), a, b, resamples=100, seed=0)
    assert asdict(found["b"]) == {"a": 1.0, "b": None, "difference": None, "low": None, "high": None, "p": None}
    assert found["a"].p == 1.0


def test_other_units_or_names_are_refused_and_named() -> None:
    a = Outcomes(("g",) * 3, ("g/1", "g/2", "g/3"), ("right",), np.zeros((3, 1)))
    other = Outcomes(("g",) * 3, ("g/1", "g/2", "g/7"), ("right",), np.zeros((3, 1)))
    moved = Outcomes(("g",) * 3, ("g/1", "g/3", "g/2"), ("right",), np.zeros((3, 1)))
    renamed = Outcomes(a.groups, a.ids, ("wrong",), a.values)
    for b, message in (
        (other, "only one has 'g/3'; only one has 'g/7'"),
        (moved, "unit 2 is 'g/2' in one and 'g/3' in another"),
        (renamed, "measures 'right', another 'wrong'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            compare(benchmark(), a, b, resamples=100, seed=0)
        assert error.value.flag == "--compare"
