"""Comparing a policy with its start: every couple of replies counts, and prompts are what is resampled."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence

import numpy as np
import pytest

from wildreward_ray.policy.comparison import Evaluation, interval, win_rate


def evaluation(*rewards: Sequence[float], replies: int | None = None) -> Evaluation:
    sizes = [replies or max(1, len(r)) for r in rewards]
    return Evaluation(rewards, [[10] * n for n in sizes], [[True] * n for n in sizes])


def test_win_rate_is_the_share_of_all_couples_won_averaged_over_prompts() -> None:
    rng = random.Random(3)
    before = [[float(rng.randint(1, 4)) for _ in range(4)] for _ in range(6)]
    after = [[float(rng.randint(1, 4)) for _ in range(3)] for _ in range(6)]
    shares = []
    for old, new in zip(before, after, strict=True):
        couples = list(itertools.product(old, new))
        shares.append(sum(1.0 if n > o else 0.5 if n == o else 0.0 for o, n in couples) / len(couples))
    assert win_rate(evaluation(*before), evaluation(*after)).rate == pytest.approx(sum(shares) / 6)


def test_a_prompt_with_more_replies_weighs_no_more_than_another() -> None:
    before, after = evaluation([1.0], [1.0]), evaluation([2.0] * 9, [0.0])
    assert win_rate(before, after).rate == 0.5
    assert after.reward_mean == 1.0


def test_ties_are_half_a_win_and_the_two_directions_are_complements() -> None:
    a, b = evaluation([1.0, 2.0], [3.0, 3.0]), evaluation([2.0, 2.0], [3.0, 5.0])
    assert win_rate(a, a).rate == 0.5
    there, back = win_rate(a, b).rate, win_rate(b, a).rate
    assert there == 0.75
    assert back == 0.25


def test_the_win_rate_ignores_the_scale_of_rewards_but_keeps_prompts_apart() -> None:
    # Every reply got worse for its own prompt, though the second prompt's are above all of the first's.
    before, after = evaluation([2.0, 2.1], [4.0, 4.1]), evaluation([1.0, 1.1], [3.0, 3.1])
    assert win_rate(before, after).rate == 0.0


def test_prompts_without_rewards_on_a_side_are_left_out() -> None:
    before, after = evaluation([1.0], [], [1.0]), evaluation([2.0], [9.0], [])
    assert win_rate(before, after).rate == 1.0
    assert after.prompts == 2
    assert win_rate(evaluation([]), evaluation([1.0])) == (None, None, None)
    assert evaluation([]).reward_mean is None


def test_the_interval_is_over_prompts_not_over_replies() -> None:
    means = [1.0, 2.0, 3.0, 4.0]
    few, many = evaluation(*[[m] for m in means]), evaluation(*[[m] * 64 for m in means])
    assert interval(few.reward_by_prompt, 0) == interval(many.reward_by_prompt, 0), "copies of a reply are no news"
    assert win_rate(few, many, seed=4)[1:] == interval([0.5] * 4, 4)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = interval(list(rng.normal(size=40)), trial)
        assert low is not None
        assert high is not None
        hits += low <= 0 <= high
    assert 178 <= hits <= 199


def test_the_interval_narrows_with_the_root_of_the_number_of_prompts() -> None:
    values = list(np.random.default_rng(1).normal(size=25))
    (low, high), (low4, high4) = interval(values, 0), interval(values * 4, 0)
    assert low is not None
    assert high is not None
    assert low4 is not None
    assert high4 is not None
    assert (high - low) / (high4 - low4) == pytest.approx(2, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_one_prompt_gives_none() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    assert interval(values, 7) == interval(values, 7) != interval(values, 8)
    assert interval(values, -7) == interval(values, 7)
    assert interval([0.4], 0) == interval([], 0) == (None, None)


def test_an_evaluation_comes_back_from_json_as_it_was() -> None:
    found = Evaluation([[1.5, 2.0], []], [[3, 4], [5, 6]], [[True, False], [True, True]])
    again = Evaluation(**json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found
    assert (again.length_mean, again.finished_share, again.replies) == (4.5, 0.75, 2)


@pytest.mark.parametrize(
    ("rewards", "lengths", "finished", "match"),
    [
        ([], [], [], "at least one"),
        ([[1.0]], [[3], [4]], [[True]], "lengths of 2"),
        ([[1.0, 2.0]], [[3]], [[True]], "prompt 0: 2 rewards, 1 lengths"),
        ([[]], [[]], [[]], "prompt 0"),
        ([[1.0], [float("nan")]], [[3], [3]], [[True], [True]], r"prompt 1.*finite"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    rewards: list[list[float]], lengths: list[list[int]], finished: list[list[bool]], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        Evaluation(rewards, lengths, finished)


def test_evaluations_of_different_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="1 prompts before and 2 after"):
        win_rate(evaluation([1.0]), evaluation([1.0], [2.0]))
