"""Pairs out of rollouts: only a real difference between usable responses becomes a preference."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from wildreward_ray.core.config.online_dpo import PairSection
from wildreward_ray.policy.pairs import (
    Group,
    Pair,
    Sample,
    SampleReward,
    best_worst_pair,
    build_pairs,
    order_probability,
    rollout_spread,
    similarity,
)


def sample(text: str, *, finished: bool = True, tokens: int | None = None) -> Sample:
    return Sample(text=text, token_ids=tuple(range(len(text) if tokens is None else tokens)), finished=finished)


def scores(*values: float) -> list[SampleReward]:
    return [SampleReward(value) for value in values]


def pair(
    rewards: Sequence[float],
    texts: Sequence[str] = "abcdefgh",
    *,
    cut: str = "",
    tokens: Sequence[int] = (1,) * 8,
    **rules: Any,
) -> Pair | str:
    samples = [
        sample(text, finished=text not in cut, tokens=count)
        for text, count, _ in zip(texts, tokens, rewards, strict=False)
    ]
    return best_worst_pair(7, samples, scores(*rewards), PairSection(**rules))


def texts_of(got: Pair | str) -> tuple[str, str]:
    assert isinstance(got, Pair), got
    return got.chosen.text, got.rejected.text


def test_best_is_paired_with_worst() -> None:
    assert pair([2.0, 3.5, 1.5, 3.0]) == Pair(7, sample("b"), sample("c"), 3.5, 1.5)


def test_the_first_sample_wins_a_tie() -> None:
    assert texts_of(pair([3.0, 3.0, 1.0, 1.0])) == ("a", "c")


def test_equal_rewards_never_make_a_preference_even_with_no_margin() -> None:
    assert pair([2.0, 2.0, 2.0]) == "margin"


def test_the_margin_itself_is_enough() -> None:
    assert isinstance(pair([2.0, 2.5], min_margin=0.5), Pair)
    assert pair([2.0, 2.5], min_margin=0.51) == "margin"


def test_identical_responses_are_no_pair_even_if_their_rewards_differ() -> None:
    assert pair([2.0, 2.5], texts="aa") == "identical"
    assert pair([2.0, 2.5], texts="aa", max_similarity=1.0) == "identical"
    assert pair([2.0, 2.0], texts="aa") == "identical"


def test_cut_responses_compete_unless_excluded() -> None:
    assert texts_of(pair([4.0, 3.0, 1.0], cut="ac")) == ("a", "c")
    assert texts_of(pair([4.0, 3.0, 1.0, 2.0], cut="ac", eos="exclude")) == ("b", "d")
    assert pair([4.0, 3.0, 1.0], cut="ac", eos="exclude") == "unfinished"


def test_a_cut_response_pays_the_penalty_and_the_pair_keeps_the_raw_rewards() -> None:
    got = pair([3.0, 3.5, 2.0], cut="b", eos="penalise", eos_penalty=2.0)
    assert got == Pair(7, sample("a"), sample("b", finished=False), 3.0, 3.5)
    assert texts_of(pair([3.0, 3.5, 2.0], cut="b", eos="keep", eos_penalty=2.0)) == ("b", "c")


def test_penalties_count_towards_the_margin() -> None:
    assert pair([3.0, 3.0], cut="b", eos="penalise", eos_penalty=0.4, min_margin=0.5) == "margin"
    assert texts_of(pair([3.0, 3.0], cut="b", eos="penalise", eos_penalty=0.5, min_margin=0.5)) == ("a", "b")


def test_the_length_penalty_is_per_hundred_tokens() -> None:
    assert texts_of(pair([3.0, 3.4], tokens=[100, 300], length_penalty=0.25)) == ("a", "b")
    assert texts_of(pair([3.0, 3.6], tokens=[100, 300], length_penalty=0.25)) == ("b", "a")
    assert pair([3.0, 3.5], tokens=[100, 300], length_penalty=0.25) == "margin"


@pytest.mark.parametrize("eos", ["keep", "penalise", "exclude"])
def test_a_reply_without_text_is_never_chosen_or_rejected(eos: str) -> None:
    assert texts_of(pair([9.0, 2.0, 3.0, -9.0], texts=["", "b", "c", " \n"], eos=eos)) == ("c", "b")
    assert pair([9.0, 2.0], texts=["", "b"], eos=eos) == "unfinished"
    assert pair([1.0, 2.0], texts=["", "\n"], eos=eos) == "unfinished"


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_one_sample_is_too_few(rewards: list[float]) -> None:
    assert pair(rewards) == "too_few"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_raises(bad: float) -> None:
    with pytest.raises(ValueError, match=r"prompt 7.*sample 1"):
        pair([1.0, bad, 2.0])


def test_rewards_must_match_samples() -> None:
    with pytest.raises(ValueError, match="1 rewards for 2 samples"):
        best_worst_pair(0, [sample("a"), sample("b")], scores(1.0), PairSection())


def test_near_duplicates_are_no_pair() -> None:
    words = [f"word{i}" for i in range(20)]
    texts = [" ".join(words), " ".join(words[:-1])]
    assert similarity(*texts) == 0.95
    assert isinstance(pair([2.0, 3.0], texts=texts, max_similarity=0.95), Pair)
    assert pair([2.0, 3.0], texts=texts, max_similarity=0.94) == "similar"


def test_likeness_of_one_turns_the_check_off() -> None:
    texts = ["the dog bit the man", "the man bit the dog"]
    assert pair([2.0, 3.0], texts=texts) == "similar"
    assert isinstance(pair([2.0, 3.0], texts=texts, max_similarity=1.0), Pair)


def test_a_tie_is_never_taken_for_a_near_duplicate() -> None:
    assert pair([2.0, 2.0], texts=["one reply", "another answer"], max_similarity=0.5) == "margin"


def test_only_best_and_worst_must_differ() -> None:
    texts = ["a b c d", "a b c d e", "x y z"]
    assert texts_of(pair([3.0, 3.5, 1.0], texts=texts, max_similarity=0.5)) == ("a b c d e", "x y z")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a b c", "b c d", 2 / 4),
        ("a a b", "a b b", 2 / 4),
        ("one two", "three four", 0.0),
        # Chinese: four of six characters are common, punctuation included.
        ("今天很好。", "今天不好。", 4 / 6),
        # Japanese has no spaces either, Korean does.
        ("ありがと", "ありがた", 3 / 5),
        ("오늘 날씨", "오늘 비", 1 / 3),
        # Of a text in both scripts, words and characters count alike.
        ("用 Python 写", "用 Rust 写", 2 / 4),
        ("用Python写", "用 Python 写", 1.0),
        ("a  b\n", "b a", 1.0),
        ("", " \n", 1.0),
        ("", "a", 0.0),
    ],
)
def test_similarity_counts_shared_words_or_characters(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == pytest.approx(expected)


def random_text(rng: random.Random) -> str:
    alphabet = rng.choice(["ab ", "今天很 ", "今a \n"])
    return "".join(rng.choices(alphabet, k=rng.randrange(8)))


def test_similarity_is_symmetric_in_its_range_and_one_for_equal_texts() -> None:
    rng = random.Random(0)
    for _ in range(500):
        a, b = random_text(rng), random_text(rng)
        assert similarity(a, b) == similarity(b, a)
        assert 0 <= similarity(a, b) <= 1
        assert similarity(a, a) == 1


def random_probs(rng: random.Random, levels: int) -> tuple[float, ...]:
    weights = [rng.choice([0.0, rng.random(), 1e-9]) for _ in range(levels)]
    weights[rng.randrange(levels)] += 0.1
    return tuple(w / math.fsum(weights) for w in weights)


def test_order_probability_equals_the_enumeration_of_all_levels_and_exchanging_gives_the_rest() -> None:
    rng = random.Random(1)
    for _ in range(500):
        levels = rng.randrange(2, 11)
        chosen, rejected = random_probs(rng, levels), random_probs(rng, levels)
        joint = {(i, j): chosen[i] * rejected[j] for i, j in product(range(levels), repeat=2)}
        above = sum(p for (i, j), p in joint.items() if i > j)
        differ = sum(p for (i, j), p in joint.items() if i != j)
        expected = above / differ if differ else 0.5
        assert order_probability(chosen, rejected) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert order_probability(chosen, rejected) + order_probability(rejected, chosen) == pytest.approx(1)


def test_order_probability_at_its_ends() -> None:
    assert order_probability((0, 1), (1, 0)) == 1
    assert order_probability((1, 0), (0, 1)) == 0
    assert order_probability((0, 1, 0), (0, 1, 0)) == 0.5
    assert order_probability((0.2, 0.3, 0.5), (0.2, 0.3, 0.5)) == pytest.approx(0.5)


def test_pairs_kept_for_an_accuracy_have_at_least_that_accuracy_where_the_model_is_calibrated() -> None:
    rng = random.Random(2)
    right = wrong = 0
    for _ in range(4000):
        probs = random_probs(rng, 4), random_probs(rng, 4)
        if order_probability(*probs) < 0.8:
            continue
        chosen, rejected = (rng.choices(range(4), p)[0] for p in probs)
        right += chosen > rejected
        wrong += chosen < rejected
    assert right + wrong > 500
    assert right / (right + wrong) >= 0.8


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ((), ()),
        ((1.0,), (1.0,)),
        ((0.5, 0.5), (0.2, 0.3, 0.5)),
        ((0.5, -0.5), (0.5, 0.5)),
        ((0.5, 0.5), (0.5, math.nan)),
    ],
)
def test_impossible_level_probabilities_raise(chosen: tuple[float, ...], rejected: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="level probabilities"):
        order_probability(chosen, rejected)


def test_a_model_that_knows_no_level_is_not_taken_for_undecided() -> None:
    with pytest.raises(ValueError, match="all be 0"):
        order_probability((0.0, 0.0), (0.5, 0.5))


def test_a_pair_the_reward_model_is_unsure_of_is_left_out() -> None:
    two = [sample("a"), sample("b")]
    # P(above) 0.49, P(below) 0.09.
    rewards = [SampleReward(1.7, (0.3, 0.7)), SampleReward(1.3, (0.7, 0.3))]
    assert order_probability((0.3, 0.7), (0.7, 0.3)) == pytest.approx(0.49 / 0.58)
    assert isinstance(best_worst_pair(0, two, rewards, PairSection(min_accuracy=0.84)), Pair)
    assert best_worst_pair(0, two, rewards, PairSection(min_accuracy=0.85)) == "unsure"
    assert isinstance(best_worst_pair(0, two, rewards, PairSection()), Pair)


def test_no_penalty_turns_a_pair_against_the_reward_models_own_order_where_accuracy_is_asked_for() -> None:
    two = [sample("a"), sample("b", finished=False)]
    rewards = [SampleReward(1.3, (0.7, 0.3)), SampleReward(1.7, (0.3, 0.7))]
    assert texts_of(best_worst_pair(0, two, rewards, PairSection(eos="penalise"))) == ("a", "b")
    assert best_worst_pair(0, two, rewards, PairSection(eos="penalise", min_accuracy=0.6)) == "unsure"


def test_an_accuracy_without_level_probabilities_raises_and_never_passes() -> None:
    two = [sample("a"), sample("b")]
    rewards = [SampleReward(1.7, (0.3, 0.7)), SampleReward(1.3)]
    with pytest.raises(ValueError, match=r"prompt 3: sample 1 has no level probabilities"):
        best_worst_pair(3, two, rewards, PairSection(min_accuracy=0.6))
    # `None` and nothing at all are not the same, but neither is an answer.
    with pytest.raises(ValueError, match="level probabilities"):
        best_worst_pair(3, two, [SampleReward(1.7, ()), SampleReward(1.3, ())], PairSection(min_accuracy=0.6))


def test_every_group_is_a_pair_or_counted() -> None:
    two = [sample("a"), sample("b")]
    groups: list[Group] = [
        (0, two, scores(1.0, 2.0)),
        (1, two, scores(1.0, 1.0)),
        (2, two[:1], scores(1.0)),
        (3, two, scores(3.0, 1.0)),
        (4, [], []),
    ]
    pairs, skipped = build_pairs(groups, PairSection(min_margin=0.1))
    assert [p.prompt_index for p in pairs] == [0, 3]
    assert skipped == {"margin": 1, "too_few": 2}


def random_group(rng: random.Random, index: int) -> Group:
    count = rng.randrange(5)
    # Out of three texts, samples of one prompt often repeat one another.
    texts = [random_text(rng) for _ in range(3)]
    samples = [
        sample(rng.choice(texts), finished=rng.random() < 0.7, tokens=rng.randrange(1, 4) * 100) for _ in range(count)
    ]
    rewards = [SampleReward(rng.randrange(1, 5), random_probs(rng, 4)) for _ in range(count)]
    return index, samples, rewards


@pytest.mark.parametrize("eos", ["keep", "penalise", "exclude"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5])
@pytest.mark.parametrize("min_accuracy", [None, 0.7])
def test_random_groups_add_up_and_every_pair_obeys_the_rules(
    eos: str, length_penalty: float, min_accuracy: float | None
) -> None:
    rng = random.Random(3)
    rules = PairSection.model_validate(
        {"eos": eos, "length_penalty": length_penalty, "min_accuracy": min_accuracy, "max_similarity": 0.8}
    )
    groups = [random_group(rng, i) for i in range(400)]
    pairs, skipped = build_pairs(groups, rules)
    assert len(pairs) + skipped.total() == len(groups)
    assert [p.prompt_index for p in pairs] == sorted({p.prompt_index for p in pairs})
    expected = {"too_few", "unfinished", "identical", "similar", "margin"} | ({"unsure"} if min_accuracy else set())
    assert set(skipped) == expected
    assert len(pairs) > 20

    def effective(one: Sample, reward: float) -> float:
        return reward - (eos == "penalise" and not one.finished) - length_penalty * len(one.token_ids) / 100

    for p in pairs:
        _, samples, rewards = groups[p.prompt_index]
        competing = [
            effective(s, r.score)
            for s, r in zip(samples, rewards, strict=True)
            if s.text.strip() and (s.finished or eos != "exclude")
        ]
        best, worst = effective(p.chosen, p.chosen_reward), effective(p.rejected, p.rejected_reward)
        assert best > worst
        assert (best, worst) == (max(competing), min(competing))
        assert similarity(p.chosen.text, p.rejected.text) <= 0.8
        given = list(zip(samples, (r.score for r in rewards), strict=True))
        assert (p.chosen, p.chosen_reward) in given
        assert (p.rejected, p.rejected_reward) in given


def test_spread_is_within_prompts_not_between_them_and_before_penalties() -> None:
    two = [sample("a"), sample("bb", finished=False)]
    spread = rollout_spread([(0, two, scores(1.0, 1.0)), (1, two, scores(3.0, 5.0)), (2, [], [])])
    assert spread == {
        "reward_mean": 2.5,
        "reward_std_within": 0.5,
        "reward_range": 1.0,
        "finished_share": 0.5,
        "response_tokens": 1.5,
    }
    assert set(rollout_spread([]).values()) == {None}
