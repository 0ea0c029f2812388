"""The judge's bias is taken out with a mean over the corpus that no order of rows can change."""

from __future__ import annotations

import math
import random

import pytest

from wildreward_ray.feedback.prior import MIN_GROUP_ROWS, Prior, PriorSum, entropy, softmax

ROWS = [("spaced", [-1.0, -2.0 - i % 3, -0.5 * (i % 2)]) for i in range(MIN_GROUP_ROWS)] + [
    ("cjk", [-4.0, -0.25 * i, -1.0]) for i in range(MIN_GROUP_ROWS + 10)
]


def prior(rows: list[tuple[str, list[float]]]) -> Prior:
    total = PriorSum()
    for group, logprobs in rows:
        total.add(group, logprobs)
    return total.finish()


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def test_means_are_those_computed_by_hand() -> None:
    found = prior(ROWS)
    for group in ("spaced", "cjk"):
        assert found.groups[group] == pytest.approx(mean([lp for g, lp in ROWS if g == group]))
    assert found.overall == pytest.approx(mean([lp for _, lp in ROWS]))


def test_order_of_rows_changes_nothing() -> None:
    shuffled = random.Random(3).sample(ROWS, len(ROWS))
    one, other = prior(ROWS), prior(shuffled)
    assert list(one.groups) == list(other.groups)
    for group, logprobs in ROWS:
        assert one.probabilities(group, logprobs, None) == pytest.approx(other.probabilities(group, logprobs, None))


def test_probabilities_are_those_computed_by_hand() -> None:
    found = Prior({"g": [-1.0, -3.0]}, [-9.0, 0.0])
    # exp(-2+1) : exp(-2+3), then with shares 0.8 : 0.2.
    assert found.probabilities("g", [-2.0, -2.0], None) == pytest.approx(
        [1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)]
    )
    weighted = [0.8 * math.exp(-1), 0.2 * math.exp(1)]
    expected = [w / sum(weighted) for w in weighted]
    assert found.probabilities("g", [-2.0, -2.0], [0.8, 0.2]) == pytest.approx(expected)


def test_judge_with_a_constant_bias_is_corrected_completely() -> None:
    """Rows that differ only by a constant preference must come out as if there were none."""
    bias = [5.0, -1.0, 0.0]
    fair = [[math.log(p) for p in random.Random(i).choices([0.2, 0.3, 0.5], k=3)] for i in range(60)]
    biased = [[value + b for value, b in zip(row, bias, strict=True)] for row in fair]
    without, corrected = prior([("g", r) for r in fair]), prior([("g", r) for r in biased])
    for plain, row in zip(fair, biased, strict=True):
        assert corrected.probabilities("g", row, None) == pytest.approx(without.probabilities("g", plain, None))


def test_small_group_takes_the_mean_over_everything() -> None:
    rows = [*ROWS, *[("rare", [-7.0, -7.0, -0.1])] * (MIN_GROUP_ROWS - 1)]
    found = prior(rows)
    assert "rare" not in found.groups
    overall = mean([lp for _, lp in rows])
    expected = softmax([v - m for v, m in zip([-1.0, -2.0, -3.0], overall, strict=True)])
    assert found.probabilities("rare", [-1.0, -2.0, -3.0], None) == pytest.approx(expected)
    assert found.probabilities("never seen", [-1.0, -2.0, -3.0], None) == pytest.approx(expected)
    one_more = prior([*rows, ("rare", [-7.0, -7.0, -0.1])])
    assert one_more.groups["rare"] == pytest.approx([-7.0, -7.0, -0.1])


def test_without_rows_the_judge_is_taken_at_its_word() -> None:
    found = PriorSum().finish()
    assert found.probabilities("g", [math.log(0.1), math.log(0.9)], None) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("logprobs", [[-1000.0, -1.0, -2.0], [0.0, 0.0, 0.0], [-900.0, -901.0, -999.0]])
@pytest.mark.parametrize("shares", [None, [0.2, 0.3, 0.5]])
def test_probabilities_are_finite_and_sum_to_one(logprobs: list[float], shares: list[float] | None) -> None:
    found = prior(ROWS).probabilities("cjk", logprobs, shares)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in found)


def test_wrong_number_of_verdicts_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        prior(ROWS).probabilities("cjk", [-1.0, -2.0], None)


def test_entropy_is_zero_where_sure_and_greatest_where_not() -> None:
    assert entropy([0.0, 1.0, 0.0]) == 0
    assert entropy([0.25] * 4) == pytest.approx(math.log(4))
