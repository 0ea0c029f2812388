"""Pairs out of rollouts: only a real difference between usable responses becomes a preference."""

from __future__ import annotations

import math

import pytest

from wildreward_ray.policy.pairs import Pair, Sample, best_worst_pair, build_pairs, rollout_spread


def sample(text: str, *, finished: bool = True) -> Sample:
    return Sample(text=text, token_ids=tuple(map(ord, text)), finished=finished)


def pair(
    rewards: list[float], texts: str = "abcdefgh", cut: str = "", margin: float = 0.0, eos: bool = True
) -> Pair | str:
    samples = [sample(text, finished=text not in cut) for text in texts[: len(rewards)]]
    return best_worst_pair(7, samples, rewards, min_margin=margin, require_eos=eos)


def test_best_is_paired_with_worst() -> None:
    assert pair([2.0, 3.5, 1.5, 3.0]) == Pair(7, sample("b"), sample("c"), 3.5, 1.5)


def test_the_first_sample_wins_a_tie() -> None:
    got = pair([3.0, 3.0, 1.0, 1.0])
    assert isinstance(got, Pair)
    assert (got.chosen.text, got.rejected.text) == ("a", "c")


def test_equal_rewards_never_make_a_preference_even_with_no_margin() -> None:
    assert pair([2.0, 2.0, 2.0]) == "margin"


def test_the_margin_itself_is_enough() -> None:
    assert isinstance(pair([2.0, 2.5], margin=0.5), Pair)
    assert pair([2.0, 2.5], margin=0.51) == "margin"


def test_identical_responses_are_no_pair_even_if_their_rewards_differ() -> None:
    assert pair([2.0, 2.5], texts="aa") == "identical"


def test_cut_responses_compete_only_where_asked() -> None:
    got = pair([4.0, 3.0, 1.0, 2.0], cut="ac")
    assert isinstance(got, Pair)
    assert (got.chosen.text, got.rejected.text) == ("b", "d")
    assert pair([4.0, 3.0, 1.0], cut="ac") == "unfinished"
    anyway = pair([4.0, 3.0, 1.0], cut="ac", eos=False)
    assert isinstance(anyway, Pair)
    assert (anyway.chosen.text, anyway.rejected.text) == ("a", "c")


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_one_sample_is_too_few(rewards: list[float]) -> None:
    assert pair(rewards) == "too_few"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_raises(bad: float) -> None:
    with pytest.raises(ValueError, match=r"prompt 7.*sample 1"):
        pair([1.0, bad, 2.0])


def test_rewards_must_match_samples() -> None:
    with pytest.raises(ValueError, match="1 rewards for 2 samples"):
        best_worst_pair(0, [sample("a"), sample("b")], [1.0], min_margin=0, require_eos=True)


def test_every_group_is_a_pair_or_counted() -> None:
    two = [sample("a"), sample("b")]
    groups = [(0, two, [1.0, 2.0]), (1, two, [1.0, 1.0]), (2, two[:1], [1.0]), (3, two, [3.0, 1.0]), (4, [], [])]
    pairs, skipped = build_pairs(groups, min_margin=0.1, require_eos=True)
    assert [p.prompt_index for p in pairs] == [0, 3]
    assert skipped == {"margin": 1, "too_few": 2}


def test_spread_is_within_prompts_not_between_them() -> None:
    two = [sample("a"), sample("bb", finished=False)]
    spread = rollout_spread([(0, two, [1.0, 1.0]), (1, two, [3.0, 5.0]), (2, [], [])])
    assert spread == {
        "reward_mean": 2.5,
        "reward_std_within": 0.5,
        "reward_range": 1.0,
        "finished_share": 0.5,
        "response_tokens": 1.5,
    }
    assert set(rollout_spread([]).values()) == {None}
