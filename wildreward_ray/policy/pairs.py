"""Preference pairs out of several scored rollouts of one prompt: the best against the worst.

This is the pairing of online DPO in arXiv 2602.08829 (online DPO section). A prompt that can't give a pair is skipped
with a reason, and the reasons are counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wildreward_ray.core.config.online_dpo import PairSection

TOO_FEW = "too_few"
UNFINISHED = "unfinished"
IDENTICAL = "identical"
SIMILAR = "similar"
MARGIN = "margin"
UNSURE = "unsure"

# Characters of scripts that set no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) and their full-width
# punctuation. Korean does set them.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3001-\u312f\u3190-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\uff01-\uff9f\U00020000-\U0003ffff"
)
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


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
class SampleReward:
    """The reward of a sample as the service gave it.

    Attributes:
        score: on the scale of the reward model, higher is better.
        level_probs: [K] probabilities of the reply's levels, index 0 is level 1; None where the protocol gives a scalar
            only.
    """

    score: float
    level_probs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """A better and a worse response to prompt number `prompt_index`. The rewards are the service's own, before penalties."""

    prompt_index: int
    chosen: Sample
    rejected: Sample
    chosen_reward: float
    rejected_reward: float


Group = tuple[int, Sequence[Sample], Sequence[SampleReward]]


def best_worst_pair(
    prompt_index: int, samples: Sequence[Sample], rewards: Sequence[SampleReward], rules: PairSection
) -> Pair | str:
    """The pair of highest and lowest effective reward, or the reason why there is none. The first sample wins a tie.

    The effective reward is the score less `length_penalty` for every 100 sampled tokens, reasoning included, and less
    `eos_penalty` where the length limit cut the sample and `eos` is `penalise`. It orders the samples and is held against
    `min_margin`; penalties may turn two scores round, which is what they are for. `min_accuracy` asks the reward model
    alone, so where it is set, penalties still choose the two samples, but no pair goes against the model's own order.

    A sample without text (nothing after its reasoning, say) never competes: its score would be one of an empty reply.

    Args:
        prompt_index: number of the prompt, carried through.
        samples: rollouts of one prompt.
        rewards: their rewards, in the same order.
        rules: which samples become a pair.

    Returns:
        A pair, or the first of these that holds: `too_few` (fewer than two samples), `unfinished` (fewer than two of them
        may compete), `identical` (best and worst have one text), `similar` (their `similarity` is above `max_similarity`),
        `margin` (their effective rewards are equal or closer than `min_margin`), `unsure` (their `order_probability` is
        below `min_accuracy`).

    Raises:
        ValueError: a score is NaN or infinite, there isn't one reward a sample, or `min_accuracy` is set and a reward has no
            level probabilities or impossible ones. Rewards are never guessed.
    """
    _check(prompt_index, samples, rewards, rules)
    if len(samples) < 2:
        return TOO_FEW
    usable = [i for i, s in enumerate(samples) if s.text.strip() and (s.finished or rules.eos != "exclude")]
    if len(usable) < 2:
        return UNFINISHED
    effective = {i: _effective(samples[i], rewards[i], rules) for i in usable}
    best = max(usable, key=effective.__getitem__)
    worst = min(usable, key=effective.__getitem__)
    chosen, rejected = samples[best], samples[worst]
    # With all rewards equal, best and worst are one sample: that says nothing of its likeness to the others.
    if len({samples[i].text for i in usable}) == 1 or (best != worst and chosen.text == rejected.text):
        return IDENTICAL
    if best != worst and similarity(chosen.text, rejected.text) > rules.max_similarity:
        return SIMILAR
    margin = effective[best] - effective[worst]
    if margin <= 0 or margin < rules.min_margin:
        return MARGIN
    if rules.min_accuracy is not None:
        # `_check` saw to it that none is None.
        accuracy = order_probability(rewards[best].level_probs or (), rewards[worst].level_probs or ())
        if accuracy < rules.min_accuracy:
            return UNSURE
    return Pair(prompt_index, chosen, rejected, rewards[best].score, rewards[worst].score)


def _check(prompt_index: int, samples: Sequence[Sample], rewards: Sequence[SampleReward], rules: PairSection) -> None:
    if len(samples) != len(rewards):
        raise ValueError(f"prompt {prompt_index}: {len(rewards)} rewards for {len(samples)} samples")
    for i, reward in enumerate(rewards):
        if not math.isfinite(reward.score):
            raise ValueError(f"prompt {prompt_index}: score {reward.score} of sample {i} is not a finite number")
        if rules.min_accuracy is not None and reward.level_probs is None:
            raise ValueError(
                f"prompt {prompt_index}: sample {i} has no level probabilities, which min_accuracy {rules.min_accuracy} needs"
            )


def _effective(sample: Sample, reward: SampleReward, rules: PairSection) -> float:
    """The reward less its penalties, on the scale of the reward model."""
    cut = rules.eos_penalty if rules.eos == "penalise" and not sample.finished else 0.0
    return reward.score - cut - rules.length_penalty * len(sample.token_ids) / 100


def similarity(a: str, b: str) -> float:
    """How much of their words two texts share, whatever the order: the Jaccard overlap of the two multisets, in [0, 1].

    With n_t(u) the count of unit u in text t, it is sum_u min(n_a(u), n_b(u)) / sum_u max(n_a(u), n_b(u)): symmetric, 1
    for equal texts, 0 for texts with nothing in common. A unit is a run of characters between spaces, case and punctuation
    included; in scripts without spaces (Chinese) every character is one. A text that mixes scripts has units of both kinds,
    so no choice has to be made for it. Two blank texts have similarity 1.
    """
    counts_a, counts_b = Counter(_UNIT.findall(a)), Counter(_UNIT.findall(b))
    either = (counts_a | counts_b).total()
    return (counts_a & counts_b).total() / either if either else 1.0


def order_probability(chosen_probs: Sequence[float], rejected_probs: Sequence[float]) -> float:
    """How likely the chosen reply's level is above the rejected one's, given that the two levels differ.

        P(Yc > Yr) / (P(Yc > Yr) + P(Yc < Yr))

    with the levels Yc and Yr independent of one another given the two replies; 0.5 where they can't differ.

    This is a margin that reads as a target accuracy. Of the pairs to which a calibrated model gives probability p, a share p
    is in the right order (pairs whose levels turn out equal have none), so pairs kept from p >= t on are right at least
    that often. A gap of scores has no such meaning: how often a gap of 0.5 is right depends on the model, on K, and on where
    on the scale the two scores lie. The promise is as good as the calibration: the best of many samples is picked partly for
    the model's errors in its favour, so among such pairs it errs more often than it says.

    Args:
        chosen_probs, rejected_probs: [K] probabilities of the levels, index 0 is level 1.

    Returns:
        A probability; exchanging the two gives its complement.

    Raises:
        ValueError: the two don't have one length of at least 2, a value is negative or no number, or all are 0.
    """
    if len(chosen_probs) != len(rejected_probs) or len(chosen_probs) < 2:
        raise ValueError(
            f"level probabilities of {len(chosen_probs)} and {len(rejected_probs)} levels: two or more, alike"
        )
    for probs in (chosen_probs, rejected_probs):
        if not (all(0 <= p < math.inf for p in probs) and any(probs)):
            raise ValueError(f"level probabilities {list(probs)}: none may be negative or no number, nor all be 0")
    above = _first_is_higher(chosen_probs, rejected_probs)
    below = _first_is_higher(rejected_probs, chosen_probs)
    return above / (above + below) if above + below else 0.5


def _first_is_higher(first: Sequence[float], second: Sequence[float]) -> float:
    """P(Y1 > Y2) of two independent levels."""
    return math.fsum(p * math.fsum(second[:level]) for level, p in enumerate(first))


def build_pairs(groups: Iterable[Group], rules: PairSection) -> tuple[list[Pair], Counter[str]]:
    """`best_worst_pair` of every (prompt_index, samples, rewards).

    Returns:
        Pairs in the order of the groups, and how many groups were skipped by reason: together as many as the groups.
    """
    pairs: list[Pair] = []
    skipped: Counter[str] = Counter()
    for prompt_index, samples, rewards in groups:
        pair = best_worst_pair(prompt_index, samples, rewards, rules)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            skipped[pair] += 1
    return pairs, skipped


def rollout_spread(groups: Iterable[Group]) -> dict[str, float | None]:
    """How far the scores of a step reach, for its log: scores that no longer spread teach DPO nothing.

    Returns:
        `reward_mean` over all samples; `reward_std_within` and `reward_range`: standard deviation and range within a
        prompt, averaged over prompts; `finished_share` and `response_tokens`: over all samples. Scores are taken before
        penalties. None without samples.
    """
    kept = [
        (samples, np.asarray([reward.score for reward in rewards], dtype=np.float64))
        for _, samples, rewards in groups
        if len(samples)
    ]
    if not kept:
        return dict.fromkeys(
            ("reward_mean", "reward_std_within", "reward_range", "finished_share", "response_tokens"), None
        )
    samples = [sample for group, _ in kept for sample in group]
    return {
        "reward_mean": float(np.concatenate([scores for _, scores in kept]).mean()),
        "reward_std_within": float(np.mean([scores.std() for _, scores in kept])),
        "reward_range": float(np.mean([np.ptp(scores) for _, scores in kept])),
        "finished_share": float(np.mean([sample.finished for sample in samples])),
        "response_tokens": float(np.mean([len(sample.token_ids) for sample in samples])),
    }
