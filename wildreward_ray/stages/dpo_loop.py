"""The steps of online DPO: batches are sampled ahead while earlier ones are scored and learnt from.

Batch t may be sampled as soon as step t - 1 - staleness is done, with the newest weights there are. With staleness 0 every part
waits for the others; with 1, batch t + 1 is sampled while batch t is scored and learnt from. A group of samples goes to the
reward service as soon as it is there.

Steps come in segments. At the end of a segment nothing is in flight and the engines have the newest weights: there the policy
is evaluated and saved, so that a run that goes on from a checkpoint samples what the run that went straight through sampled.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.policy.pairs import Group, Pair, Sample, SampleReward, build_pairs, rollout_spread
from wildreward_ray.stages.dpo_clock import Busy
from wildreward_ray.stages.dpo_learner import LearnerGroup
from wildreward_ray.stages.dpo_rollout import RolloutPool
from wildreward_ray.stages.dpo_scoring import Scorer, Unscored, check_unscored
from wildreward_ray.stages.prompts import Prompt, batch

T = TypeVar("T")

_NOTHING_LEARNT = ("dpo_loss", "dpo_margin", "dpo_accuracy", "kl", "grad_norm", "learning_rate")


@dataclass
class Scored:
    """A prompt's samples that have an answer, with their rewards, or why there are none.

    Attributes:
        samples: all of them.
        group: what pairs are built of.
    """

    samples: tuple[Sample, ...]
    group: Group | None
    unscored: Unscored | None


@dataclass
class Batch:
    """A step's samples on their way.

    Attributes:
        version: updates of the weights they were sampled with.
        scoring: a task for each prompt, in no order.
        seconds: from the first request to the last sample.
        sync_s: seconds that giving the engines new weights took before.
    """

    step: int
    prompts: list[Prompt]
    version: int
    scoring: list[asyncio.Task[tuple[int, Scored]]] = field(default_factory=list)
    seconds: float = 0.0
    sync_s: float = 0.0
    tokens: int = 0


class Loop:
    """The parts of a run and where it stands.

    Attributes:
        pool: the rollout actors.
        done: steps behind us.
        beta: strength of the pull to the reference, which an alarm may raise.
        first_pairs: pairs of the first step that had any, with the prompts they belong to.
    """

    def __init__(
        self, config: OnlineDpoConfig, prompts: list[Prompt], pool: RolloutPool, learner: LearnerGroup, scorer: Scorer
    ) -> None:
        self._config, self._prompts = config, prompts
        self.pool, self._learner, self._scorer = pool, learner, scorer
        self._sync = pool.sync
        self.done, self.beta = 0, config.learner.beta
        self.first_pairs: list[tuple[Prompt, Pair]] = []
        self._progress = asyncio.Condition()
        self._busy = {"rollout": Busy(), "reward": Busy(), "learner": Busy()}
        self._step_began = 0.0

    @property
    def updates(self) -> int:
        """Optimizer steps among the steps behind us; the version of the newest weights."""
        return self._sync.newest

    def go_on(self, *, done: int, updates: int, beta: float) -> None:
        """Stand where a run stood whose checkpoint the learner has loaded."""
        self.done, self._sync.newest, self.beta = done, updates, beta

    async def segment(self, last: int, told: Any, stop: asyncio.Event) -> None:
        """Go on to step `last`, or to the end of the step in which `stop` is set.

        Args:
            told: called with the metrics of every step.
        """
        await self.synchronise()
        produced: asyncio.Queue[Batch | BaseException] = asyncio.Queue()
        producer = asyncio.create_task(self._produce(self.done + 1, last, produced))
        self._step_began = time.monotonic()
        try:
            while self.done < last and not stop.is_set():
                batch_or_error = await produced.get()
                if isinstance(batch_or_error, BaseException):
                    raise batch_or_error
                told(await self._step(batch_or_error))
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
            while not produced.empty():
                left = produced.get_nowait()
                for task in left.scoring if isinstance(left, Batch) else []:
                    task.cancel()

    async def synchronise(self) -> float:
        """Give the engines the newest weights, also where they have them: their caches begin anew. Returns seconds."""
        began = time.monotonic()
        await self._sync.give()
        return time.monotonic() - began

    async def in_turn(self, compute: Callable[..., T], *args: Any) -> T:
        """What a method of the learner gives, outside of the steps. Engines that share its devices sleep afterwards."""
        async with self._sync.learning():
            return await asyncio.to_thread(compute, *args)

    async def sample_and_score(self, prompts: Sequence[Prompt], seed: int) -> list[Scored]:
        """Samples of prompts outside of the steps, in order, with their rewards.

        Args:
            seed: in place of a step's number.
        """
        if self._sync.due:
            await self.synchronise()
        tasks = [
            asyncio.create_task(self._score(prompts[rollout.index], rollout.index, rollout.samples, self._scorer))
            async for rollout in self.pool.sample([p.token_ids for p in prompts], seed)
        ]
        return _in_order(await _all(tasks))

    async def score_again(self, prompts: Sequence[Prompt], scored: Sequence[Scored], scorer: Scorer) -> list[Scored]:
        """The same samples with the rewards of another service."""
        found = zip(prompts, scored, strict=True)
        tasks = [asyncio.create_task(self._score(p, i, s.samples, scorer)) for i, (p, s) in enumerate(found)]
        return _in_order(await _all(tasks))

    async def _produce(self, first: int, last: int, produced: asyncio.Queue[Batch | BaseException]) -> None:
        try:
            for step in range(first, last + 1):
                async with self._progress:
                    await self._progress.wait_for(lambda: self.done >= step - 1 - self._config.staleness)  # noqa: B023
                produced.put_nowait(await self._sample(step))
        except Exception as e:
            produced.put_nowait(e)

    async def _sample(self, step: int) -> Batch:
        with self._busy["rollout"].working():
            sync_s = await self.synchronise() if self._sync.due else 0.0
            prompts = batch(self._prompts, step, self._config.prompts_per_step, self._config.seed)
            found = Batch(step, prompts, self._sync.given, sync_s=sync_s)
            began = time.monotonic()
            async for rollout in self.pool.sample([p.token_ids for p in prompts], step):
                found.tokens += rollout.tokens
                score = self._score(prompts[rollout.index], rollout.index, rollout.samples, self._scorer)
                found.scoring.append(asyncio.create_task(score))
            found.seconds = time.monotonic() - began
        return found

    async def _score(
        self, prompt: Prompt, index: int, samples: tuple[Sample, ...], scorer: Scorer
    ) -> tuple[int, Scored]:
        answered = [sample for sample in samples if sample.text.strip()]
        result: Sequence[SampleReward | None] | Unscored = []
        if answered:
            with self._busy["reward"].working():
                result = await scorer.score(prompt, answered)
        if isinstance(result, Unscored):
            return index, Scored(samples, None, result)
        rewards = [reward for reward in result if reward is not None]
        return index, Scored(samples, (index, answered, rewards), None)

    async def _step(self, current: Batch) -> dict[str, Any]:
        waited = time.monotonic()
        scored = _in_order(await _all(current.scoring))
        score_s = time.monotonic() - waited
        unscored = [found.unscored for found in scored if found.unscored is not None]
        check_unscored(unscored, len(scored), self._config.reward)
        groups = [found.group for found in scored if found.group is not None]
        pairs, skipped = build_pairs(groups, self._config.pairs)
        skipped.update(reason.reason for reason in unscored)
        lag = self.updates - current.version
        learnt, learn_s = await self._learn(current.prompts, pairs)
        async with self._progress:
            self.done = current.step
            self._progress.notify_all()
        began, now = self._step_began, time.monotonic()
        self._step_began = now
        tokens = learnt.pop("tokens", None)
        return {
            "step": current.step,
            "policy_version": current.version,
            "staleness": lag,
            **_spread(scored, groups),
            "pairs": len(pairs),
            "skipped": dict(skipped),
            "margin": statistics.fmean(p.chosen_reward - p.rejected_reward for p in pairs) if pairs else None,
            **learnt,
            "beta": self.beta,
            "rollout_tokens_per_s": round(current.tokens / current.seconds, 1),
            "learn_tokens_per_s": round(tokens / learn_s, 1) if tokens is not None else None,
            "seconds": {
                "rollout": current.seconds,
                "score": score_s,
                "learn": learn_s,
                "sync": current.sync_s,
                "step": now - began,
            },
            "idle": {name: round(busy.idle(began, now), 4) for name, busy in self._busy.items()},
        }

    async def _learn(self, prompts: Sequence[Prompt], pairs: Sequence[Pair]) -> tuple[dict[str, Any], float]:
        """One update where there is a pair. Returns what it measured, and seconds."""
        if not pairs:
            return dict.fromkeys(_NOTHING_LEARNT), 0.0
        ids = [prompts[pair.prompt_index].token_ids for pair in pairs]
        async with self._sync.learning():
            began = time.monotonic()
            with self._busy["learner"].working():
                results = await asyncio.gather(*self._learner.step_refs(ids, pairs, beta=self.beta))
                self._sync.learnt()
            seconds = time.monotonic() - began
        if not self.first_pairs:
            self.first_pairs = [(prompts[pair.prompt_index], pair) for pair in pairs]
        return dict(results[0]), seconds


async def _all(tasks: Sequence[asyncio.Task[tuple[int, Scored]]]) -> list[tuple[int, Scored]]:
    """The results of all tasks; the first that fails ends the others."""
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _in_order(found: Sequence[tuple[int, Scored]]) -> list[Scored]:
    return [scored for _, scored in sorted(found, key=lambda one: one[0])]


def _spread(scored: Sequence[Scored], groups: Sequence[Group]) -> dict[str, Any]:
    """How rewards and lengths of a step are spread: rewards over those that were given, lengths over all samples."""
    spread = rollout_spread(groups)
    samples = [sample for found in scored for sample in found.samples]
    return {
        "reward_mean": spread["reward_mean"],
        "reward_std": spread["reward_std_within"],
        "reward_range": spread["reward_range"],
        "response_length": statistics.fmean(len(sample.token_ids) for sample in samples),
        "finished_share": statistics.fmean(sample.finished for sample in samples),
    }
