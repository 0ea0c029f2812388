"""The one map between judge levels and training labels."""

from __future__ import annotations

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import (
    JUDGE_LEVELS,
    LEVEL_NAMES,
    NEUTRAL,
    check_k,
    fold_probs,
    is_positive_label,
    training_label,
)


def test_default_scale_drops_neutral_and_closes_the_gap() -> None:
    assert [training_label(level, 4) for level in JUDGE_LEVELS] == [1, 2, None, 3, 4]


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_labels_keep_the_order_of_levels_and_use_all_of_1_to_k(k: int) -> None:
    labels = [label for level in JUDGE_LEVELS if (label := training_label(level, k)) is not None]
    assert labels == sorted(labels)
    assert set(labels) == set(range(1, k + 1))


@pytest.mark.parametrize("k", [2, 4])
def test_even_scales_have_no_place_for_neutral(k: int) -> None:
    assert training_label(NEUTRAL, k) is None


@pytest.mark.parametrize("k", [1, 6, 10])
def test_five_levels_fold_into_two_to_five_labels_only(k: int) -> None:
    with pytest.raises(UserError, match=f"{k} levels.*--levels"):
        training_label(1, k)


@pytest.mark.parametrize("k", [1, 11, 0, -3])
def test_k_outside_its_range_is_an_error_naming_the_flag(k: int) -> None:
    with pytest.raises(UserError, match=rf"{k} levels.*2\.\.10.*--levels"):
        check_k(k)


@pytest.mark.parametrize("k", [2, 10])
def test_ends_of_the_range_of_k_are_allowed(k: int) -> None:
    assert check_k(k) == k


def test_folding_probabilities_drops_neutral_mass_and_renormalises() -> None:
    assert fold_probs([0.1, 0.2, 0.5, 0.1, 0.1], 4) == pytest.approx([0.2, 0.4, 0.2, 0.2])
    assert fold_probs([0.1, 0.2, 0.5, 0.1, 0.1], 2) == pytest.approx([0.6, 0.4])
    assert fold_probs([0.1, 0.2, 0.4, 0.2, 0.1], 5) == pytest.approx([0.1, 0.2, 0.4, 0.2, 0.1])


def test_nothing_but_neutral_folds_to_none_not_to_a_made_up_distribution() -> None:
    assert fold_probs([0.0, 0.0, 1.0, 0.0, 0.0], 4) is None


def test_folding_refuses_a_wrong_number_of_probabilities() -> None:
    with pytest.raises(ValueError, match="shorter"):
        fold_probs([0.5, 0.5], 4)


def test_positive_is_the_upper_half_without_the_middle() -> None:
    assert [label for label in range(1, 5) if is_positive_label(label, 4)] == [3, 4]
    assert [label for label in range(1, 6) if is_positive_label(label, 5)] == [4, 5]
    assert [label for label in range(1, 3) if is_positive_label(label, 2)] == [2]


def test_every_judge_level_has_a_name_of_its_own() -> None:
    assert len({LEVEL_NAMES[level] for level in JUDGE_LEVELS}) == len(JUDGE_LEVELS)
