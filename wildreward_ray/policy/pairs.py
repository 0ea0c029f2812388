"""Preference pairs out of several scored rollouts of one prompt: the best against the worst.

This is the pairing of online DPO in arXiv 2602.08829 (online DPO section). A prompt that can't give a pair is skipped
with a reason, and the reasons are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

TOO_FEW = "too_few"
UNFINISHED = "unfinished"
IDENTICAL = "identical"
MARGIN = "margin"


@dataclass(frozen=True)
class Sample:
    """One rollout.

    Attributes:
        text: the response as the reward model reads it.
        token_ids: the ids that the policy sampled, end-of-text included where it was sampled. The loss is computed on
            these and never on a re-tokenised text, which may split differently.
        finished: the policy ended the response itself; False where the length limit did.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Pair:
    """A better and a worse response to prompt number `prompt_index`."""

    prompt_index: int
    chosen: Sample
    rejected: Sample
    chosen_reward: float
    rejected_reward: float


Group = tuple[int, Sequence[Sample], Sequence[float]]


def best_worst_pair(
    prompt_index: int,
    samples: Sequence[Sample],
    rewards: Sequence[float],
    *,
    min_margin: float,
    require_eos: bool,
) -> Pair | str:
    """The pair of highest and lowest reward, or the reason why there is none. The first sample wins a tie.

    Args:
        prompt_index: number of the prompt, carried through.
        samples: rollouts of one prompt.
        rewards: their rewards, in the same order.
        min_margin: smallest difference of rewards that makes a pair. Equal rewards never do, whatever the margin.
        require_eos: leave out samples that the length limit cut.

    Returns:
        A pair, or `too_few` (fewer than two samples), `unfinished` (fewer than two of them finished), `identical` (best
        and worst have one text), `margin` (rewards too close).

    Raises:
        ValueError: a reward is NaN or infinite, or there isn't one reward a sample. Rewards are never guessed.
    """
    if len(samples) != len(rewards):
        raise ValueError(f"prompt {prompt_index}: {len(rewards)} rewards for {len(samples)} samples")
    for i, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(f"prompt {prompt_index}: reward {reward} of sample {i} is not a finite number")
    if len(samples) < 2:
        return TOO_FEW
    usable = [i for i, sample in enumerate(samples) if sample.finished or not require_eos]
    if len(usable) < 2:
        return UNFINISHED
    best = max(usable, key=lambda i: rewards[i])
    worst = min(usable, key=lambda i: rewards[i])
    if len({samples[i].text for i in usable}) == 1 or (best != worst and samples[best].text == samples[worst].text):
        return IDENTICAL
    margin = rewards[best] - rewards[worst]
    if margin <= 0 or margin < min_margin:
        return MARGIN
    return Pair(prompt_index, samples[best], samples[worst], rewards[best], rewards[worst])


def build_pairs(groups: Iterable[Group], *, min_margin: float, require_eos: bool) -> tuple[list[Pair], Counter[str]]:
    """`best_worst_pair` of every (prompt_index, samples, rewards).

    Returns:
        Pairs in the order of the groups, and how many groups were skipped by reason: together as many as the groups.
    """
    pairs: list[Pair] = []
    skipped: Counter[str] = Counter()
    for prompt_index, samples, rewards in groups:
        pair = best_worst_pair(prompt_index, samples, rewards, min_margin=min_margin, require_eos=require_eos)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            skipped[pair] += 1
    return pairs, skipped


def rollout_spread(groups: Iterable[Group]) -> dict[str, float | None]:
    """How far the rewards of a step reach, for its log: rewards that no longer spread teach DPO nothing.

    Returns:
        `reward_mean` over all samples; `reward_std_within` and `reward_range`: standard deviation and range within a
        prompt, averaged over prompts; `finished_share` and `response_tokens`: over all samples. None without samples.
    """
    kept = [(samples, np.asarray(rewards, dtype=np.float64)) for _, samples, rewards in groups if len(samples)]
    if not kept:
        return dict.fromkeys(
            ("reward_mean", "reward_std_within", "reward_range", "finished_share", "response_tokens"), None
        )
    samples = [sample for group, _ in kept for sample in group]
    return {
        "reward_mean": float(np.concatenate([rewards for _, rewards in kept]).mean()),
        "reward_std_within": float(np.mean([rewards.std() for _, rewards in kept])),
        "reward_range": float(np.mean([np.ptp(rewards) for _, rewards in kept])),
        "finished_share": float(np.mean([sample.finished for sample in samples])),
        "response_tokens": float(np.mean([len(sample.token_ids) for sample in samples])),
    }
