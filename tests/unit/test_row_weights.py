"""How much rows count: weights that are wrong train a model that looks like any other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.row_weights import row_weights

UserWeights = Literal["none", "sqrt", "equal"]


def weigh(labels: Sequence[int], k: int = 4, **changes: Any) -> NDArray[np.float64]:
    settings: dict[str, Any] = {
        "class_weights": "none",
        "user_weights": "none",
        "users": None,
        "confidence_weights": False,
        "level_probs": None,
    }
    return row_weights(np.array(labels, dtype=np.int64), k, **{**settings, **changes})


def totals(weights: NDArray[np.float64], keys: Sequence[Any]) -> dict[Any, float]:
    return {key: sum(w for w, other in zip(weights, keys, strict=True) if other == key) for key in keys}


def made_up(rows: int, k: int) -> tuple[list[int], list[str | None], NDArray[np.float32]]:
    """Rows of skewed levels and users, some without one, and probabilities of all kinds."""
    rng = np.random.default_rng(k)
    labels = np.minimum(rng.geometric(0.4, rows), k)
    names = [None, "", *(f"u{i}" for i in range(20))]
    users = [names[i] for i in np.minimum(rng.geometric(0.2, rows), len(names)) - 1]
    return labels.tolist(), users, rng.dirichlet(np.full(k, 0.5), rows).astype(np.float32)


@pytest.mark.parametrize("k", range(2, 11))
def test_weights_have_mean_one_and_balanced_levels_weigh_the_same_whatever_else_is_set(k: int) -> None:
    labels, users, probs = made_up(300, k)
    classes, kinds = ("none", "balanced"), ("none", "sqrt", "equal")
    for class_weights, user_weights, confidence in product(classes, kinds, (False, True)):
        weights = weigh(
            labels,
            k,
            class_weights=class_weights,
            user_weights=user_weights,
            users=users,
            confidence_weights=confidence,
            level_probs=probs,
        )
        assert weights.mean() == pytest.approx(1, abs=1e-12)
        assert (weights >= 0).all()
        if class_weights == "balanced":
            assert list(totals(weights, labels).values()) == pytest.approx([300 / len(set(labels))] * len(set(labels)))


def test_nothing_asked_for_is_weight_one() -> None:
    assert weigh([1, 1, 2, 4]).tolist() == [1.0] * 4


def test_balanced_levels_weigh_the_same_and_absent_levels_take_no_share() -> None:
    assert weigh([1, 1, 1, 4], class_weights="balanced").tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


@pytest.mark.parametrize(
    ("kind", "total"), [("none", [4.0, 1.0, 2.0, 2.0]), ("sqrt", [2.0, 1.0, 2.0, 2.0]), ("equal", [1.0, 1.0, 2.0, 2.0])]
)
def test_a_user_weighs_as_the_kind_says_and_rows_without_one_stand_alone(kind: UserWeights, total: list[float]) -> None:
    users = ["a", None, "a", "b", "a", "", "a", None, ""]
    by_user = totals(weigh([1] * 9, user_weights=kind, users=users), users)
    found = np.array([by_user[user] for user in ("a", "b", None, "")])
    assert (found / found.sum()).tolist() == pytest.approx([t / sum(total) for t in total])


def test_users_may_come_as_an_array() -> None:
    users = ["a", None, "a", "b"]
    listed = weigh([1] * 4, user_weights="equal", users=users)
    assert weigh([1] * 4, user_weights="equal", users=np.array(users, dtype=object)).tolist() == listed.tolist()


def test_confidence_is_one_minus_the_normalised_entropy() -> None:
    p = [0.7, 0.1, 0.1, 0.1]
    probs = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], p], dtype=np.float32)
    weights = weigh([1] * 4, confidence_weights=True, level_probs=probs)
    by_hand = [1.0, 0.0, 0.5, 1 + sum(q * math.log(q) for q in p) / math.log(4)]
    assert (weights / weights[0]).tolist() == pytest.approx(by_hand, rel=1e-6, abs=1e-9)


def test_confidence_of_four_levels_is_not_that_of_two() -> None:
    weights = weigh([1, 1], k=2, confidence_weights=True, level_probs=np.array([[1.0, 0.0], [0.9, 0.1]]))
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert weights[1] / weights[0] == pytest.approx(1 - entropy)


@pytest.mark.parametrize("k", range(2, 11))
def test_rounding_of_even_probabilities_is_not_taken_for_confidence(k: int) -> None:
    even = np.full((3, k), 1 / k, dtype=np.float32)
    even[1] = np.nextafter(even[1], 0)
    even[2, 0] = np.nextafter(even[2, 0], np.float32(1))
    with pytest.raises(UserError, match=r"all 3 rows have weight zero.*--objective.confidence-weights"):
        weigh([1, 1, 2], k, confidence_weights=True, level_probs=even)


def test_a_level_without_any_weight_cannot_be_balanced() -> None:
    probs = np.array([[1, 0, 0, 0], [0.25] * 4, [0.25] * 4])
    with pytest.raises(UserError, match=r"all rows of level 3 have weight zero.*--objective.confidence-weights"):
        weigh([1, 3, 3], confidence_weights=True, level_probs=probs, class_weights="balanced")
    assert weigh([1, 3, 3], confidence_weights=True, level_probs=probs).tolist() == pytest.approx([3.0, 0.0, 0.0])


@pytest.mark.parametrize("users", [None, [None, "", None]])
def test_a_dataset_without_users_names_the_flag(users: list[str | None] | None) -> None:
    with pytest.raises(UserError, match=r"none of the 3 rows names a user.*--objective.user-weights"):
        weigh([1, 2, 3], user_weights="sqrt", users=users)


def test_a_missing_user_that_is_not_none_is_refused_instead_of_becoming_one_heavy_user() -> None:
    with pytest.raises(TypeError, match="a user of type float"):
        weigh([1, 2, 3], user_weights="equal", users=["a", math.nan, math.nan])


def test_a_dataset_without_probabilities_names_the_flag() -> None:
    with pytest.raises(UserError, match=r"no level_probs.*--objective.confidence-weights"):
        weigh([1, 2], confidence_weights=True)


@pytest.mark.parametrize("row", [[0.5, 0.6], [-0.1, 1.1], [math.nan, 1.0], [0.0, 0.0]])
def test_confidence_rejects_what_is_no_distribution(row: list[float]) -> None:
    with pytest.raises(UserError, match=r"row 1: .*--dataset"):
        weigh([1, 1], k=2, confidence_weights=True, level_probs=np.array([[1.0, 0.0], row]))


def test_probabilities_of_another_number_of_levels_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 5 levels for a model of 4.*--levels"):
        weigh([1], confidence_weights=True, level_probs=np.full((1, 5), 0.2))


@pytest.mark.parametrize("bad", [0, 5])
def test_a_label_outside_the_scale_is_named(bad: int) -> None:
    with pytest.raises(UserError, match=rf"label {bad} in row 1: .*1\.\.4.*--levels"):
        weigh([1, bad])


def test_no_rows_and_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(UserError, match=r"empty.*--dataset"):
        weigh([])
    with pytest.raises(ValueError, match="2 users for 1 labels"):
        weigh([1], user_weights="equal", users=["a", "b"])
    with pytest.raises(ValueError, match="for 1 labels"):
        weigh([1], confidence_weights=True, level_probs=np.full((2, 4), 0.25))


def test_half_a_million_rows_take_no_python_loop_a_row() -> None:
    rng = np.random.default_rng(0)
    rows = 500_000
    names = np.array([f"user {i}" for i in range(50_000)], dtype=object)
    labels, users = rng.integers(1, 5, rows), names[rng.integers(0, len(names), rows)]
    probs = rng.dirichlet(np.ones(4), rows).astype(np.float32)
    started = time.monotonic()
    weights = row_weights(
        labels,
        4,
        class_weights="balanced",
        user_weights="sqrt",
        users=users,
        confidence_weights=True,
        level_probs=probs,
    )
    assert weights.mean() == pytest.approx(1)
    # About 0.2 s on a slow core; a loop over rows that calls numpy takes over ten times as long.
    assert time.monotonic() - started < 3
