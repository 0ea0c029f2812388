"""Hindsight: only neutral turns change, only once, and only on the judge's own evidence nearby."""

from __future__ import annotations

import itertools

import pytest

from wildreward_ray.core.scale import MIN_POSITIVE, NEUTRAL
from wildreward_ray.feedback.hindsight import Hindsight, candidates, mine


def same(a: int, b: int) -> float:
    return 1.0


def changed(levels: list[int], window: int) -> dict[int, int]:
    mined, _ = mine(levels, candidates(levels, window), same, 0.6)
    return {m.turn: m.level for m in mined}


def test_positive_turn_beyond_the_window_is_not_seen() -> None:
    assert candidates([3, 3, 3, 5], 2) == [(1, 3), (2, 3)]
    assert candidates([3, 3, 3, 5], 1) == [(2, 3)]
    assert candidates([3, 3, 3, 5], 99) == [(0, 3), (1, 3), (2, 3)]


def test_evidence_comes_later_never_earlier() -> None:
    assert changed([5, 3, 3], 5) == {}


def test_nearest_positive_wins_whatever_its_level() -> None:
    assert changed([3, 4, 5], 2) == {0: 4}
    assert changed([3, 5, 4], 2) == {0: 5}


def test_farther_positive_on_the_topic_wins_over_a_nearer_one_off_it() -> None:
    near_far = {(0, 1): 0.1, (0, 2): 0.8}
    mined, switched = mine([3, 4, 5], candidates([3, 4, 5], 2), lambda a, b: near_far[a, b], 0.6)
    assert mined == [Hindsight(turn=0, evidence=2, level=5, similarity=0.8)]
    assert switched == 0


def test_every_turn_changes_at_most_once() -> None:
    levels = [3, 4, 5, 4, 5]
    mined, _ = mine(levels, candidates(levels, 4), same, 0.6)
    assert [m.turn for m in mined] == [0]


def test_mined_label_is_no_evidence_so_nothing_travels_beyond_the_window() -> None:
    assert changed([3, 3, 3, 5], 1) == {2: 5}


def test_topic_switch_is_counted_and_changes_nothing() -> None:
    levels = [3, 5, 3, 3, 4]
    mined, switched = mine(levels, candidates(levels, 1), lambda a, b: 0.59, 0.6)
    assert (mined, switched) == ([], 2)


def test_threshold_itself_is_the_same_topic() -> None:
    mined, switched = mine([3, 5], candidates([3, 5], 1), lambda a, b: 0.6, 0.6)
    assert ([m.turn for m in mined], switched) == ([0], 0)


def test_in_every_short_conversation_only_neutral_turns_change_and_only_to_positive_levels() -> None:
    """All 5**5 conversations: negatives never spread, and no judged opinion is overwritten."""
    for levels in itertools.product(range(1, 6), repeat=5):
        for turn, level in changed(list(levels), 2).items():
            assert levels[turn] == NEUTRAL
            assert level >= MIN_POSITIVE
            assert level == next(later for later in levels[turn + 1 : turn + 3] if later >= MIN_POSITIVE)


@pytest.mark.parametrize("levels", [[], [3], [5], [3, 1, 2], [3, 2, 3]])
def test_without_a_positive_turn_there_is_nothing_to_compare(levels: list[int]) -> None:
    assert candidates(levels, 3) == []
    assert mine(levels, [], same, 0.0) == ([], 0)
