"""Rewards of the samples of one prompt, and what becomes of a run whose rewards don't come.

A reward is never made up. A prompt that the service won't or can't score stays without rewards and is counted; a service that is
gone, or whose replies can't be believed, ends the run, which can go on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wildreward_ray.cluster.reward_dialects import ServiceReward
from wildreward_ray.cluster.reward_source import RewardSource
from wildreward_ray.core.config.online_dpo import RewardClientSection
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, RewardUnavailableError, UserError
from wildreward_ray.policy.pairs import Sample, SampleReward
from wildreward_ray.stages.prompts import Prompt

REFUSED = "refused"
UNAVAILABLE = "unavailable"

# What a service says of one request: malformed or too long. Other statuses below 500 are about the client or the address.
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
# TEI says 424 where its model failed, others 500: https://huggingface.github.io/text-embeddings-inference/
_FAILED_INSIDE = 424
_RESUME = "the run stops here and can be resumed once the service is well"


@dataclass(frozen=True)
class Unscored:
    """A prompt whose samples have no rewards.

    Attributes:
        reason: `refused` (the service would refuse the same request again) or `unavailable` (it is there, but gave no scores
            for this one).
        problem: what was met.
    """

    reason: str
    problem: str


class Scorer:
    """Asks a source for the rewards of a run, for any number of prompts at a time."""

    def __init__(self, source: RewardSource) -> None:
        self._source = source

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[SampleReward | None] | Unscored:
        """One reward a sample, in order, or why there are none.

        Samples whose text is blank are not sent and have None: they are never part of a pair.

        Raises:
            RewardBrokenError: the service gave an unusable reply with status 200 twice. Its other replies can't be trusted.
            RewardUnavailableError: it gave no scores, and asked how it is, it is not well.
            RewardRefusedError: it refuses this client, or has nothing at the address that is asked.
        """
        sent = [i for i, sample in enumerate(samples) if sample.text.strip()]
        rewards: list[SampleReward | None] = [None] * len(samples)
        if sent:
            given = await self._ask(prompt, [samples[i].text for i in sent])
            if isinstance(given, Unscored):
                return given
            for i, reward in zip(sent, given, strict=True):
                rewards[i] = SampleReward(reward.score, reward.level_probs)
        return rewards

    async def _ask(self, prompt: Prompt, texts: Sequence[str]) -> list[ServiceReward] | Unscored:
        broken = failed = 0
        while True:
            try:
                return await self._source.score(prompt.history, prompt.prompt, texts)
            except UserError as e:
                # A text that JSON can't hold, such as a lone surrogate: no service could be asked for it.
                return Unscored(REFUSED, str(e))
            except RewardBrokenError as e:
                broken += 1
                if broken > 1:
                    raise _again(e, f"{e}; so it was twice: {_RESUME}") from e
            except RewardUnavailableError as e:
                if isinstance(e, RewardRefusedError):
                    if e.status in _ABOUT_THE_REQUEST:
                        return Unscored(REFUSED, str(e))
                    if e.status < 500 and e.status != _FAILED_INSIDE:
                        raise
                await self._check_health(e)
                failed += 1
                if failed > 1:
                    return Unscored(UNAVAILABLE, str(e))

    async def _check_health(self, error: RewardUnavailableError) -> None:
        try:
            await self._source.check()
        except UserError as e:
            raise _again(error, f"{error}; asked how it is: {e.problem}; {_RESUME}") from e


def unscored_share(unscored: Sequence[Unscored], prompts: int) -> float:
    """Which share of `prompts` prompts has no rewards; 0 where there are no prompts."""
    return len(unscored) / prompts if prompts else 0.0


def check_unscored(unscored: Sequence[Unscored], prompts: int, section: RewardClientSection) -> None:
    """Stop a run that would go on learning from the few prompts of a step that the service still scores.

    Args:
        unscored: those of a step.
        prompts: prompts of the step, scored or not.

    Raises:
        RewardUnavailableError: more than `max_unscored` of the prompts have no rewards.
    """
    share = unscored_share(unscored, prompts)
    if share > section.max_unscored:
        raise RewardUnavailableError(
            f"{len(unscored)} of {prompts} prompts ({share:.1%}) have no rewards, more than {section.max_unscored:.1%} "
            f"(--reward.max-unscored); the first is {unscored[0].reason}: {unscored[0].problem}; {_RESUME}"
        )


def _again(error: RewardUnavailableError, problem: str) -> RewardUnavailableError:
    """The same failure, as one that ends the run."""
    kind = RewardBrokenError if isinstance(error, RewardBrokenError) else RewardUnavailableError
    return kind(problem, attempts=error.attempts, last_status=error.last_status)
