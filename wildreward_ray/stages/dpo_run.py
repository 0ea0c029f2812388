"""A run of online DPO from its start, or its last checkpoint, to its end: segments of steps, evaluations, checkpoints."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from wildreward_ray.cluster.artifact import Artifact
from wildreward_ray.cluster.checkpoints import CheckpointStore
from wildreward_ray.cluster.stopping import on_first_signal
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.errors import RewardUnavailableError, RunStoppedError
from wildreward_ray.policy.comparison import Evaluation
from wildreward_ray.policy.pairs import Pair, Sample
from wildreward_ray.stages.dpo_learner import LearnerGroup
from wildreward_ray.stages.dpo_loop import Loop, Scored
from wildreward_ray.stages.dpo_monitor import Monitor
from wildreward_ray.stages.dpo_records import evaluation_row
from wildreward_ray.stages.dpo_scoring import Scorer
from wildreward_ray.stages.prompts import Prompt

logger = logging.getLogger(__name__)

METRICS, EVALS, SAMPLES = "metrics.jsonl", "evals.jsonl", "samples.jsonl"
CHECKPOINTS, POLICY = "checkpoints", "policy"
# Steps never have this number, so evaluations draw random numbers of their own, the same ones every time.
_EVAL_SEED = 1_000_000_003
_WRITE_EVERY_S = 10.0
# Replies that every evaluation shows, beside those of all prompts at the start and at the end.
_SHOWN = 4


class Run:
    """Takes a loop through its steps.

    Args:
        held_out: prompts that nothing is learnt from.
        second: judges evaluations only.
    """

    def __init__(
        self,
        config: OnlineDpoConfig,
        artifact: Artifact,
        loop: Loop,
        learner: LearnerGroup,
        monitor: Monitor,
        held_out: list[Prompt],
        second: Scorer | None,
    ) -> None:
        self._config, self._artifact, self._loop = config, artifact, loop
        self._learner, self._monitor, self._held_out, self._second = learner, monitor, held_out, second
        self._store = CheckpointStore(artifact.work.child(CHECKPOINTS))
        self._before: Evaluation | None = None
        self._second_before: Evaluation | None = None
        self._now: Evaluation | None = None
        # The first reply to each held-out prompt, to read: at the start and now.
        self._first_replies: list[dict[str, Any]] = []
        self._replies: list[dict[str, Any]] = []
        self._stopped: str | None = None
        self._written = 0.0

    async def main(self) -> dict[str, Any]:
        """Run to the end. Returns the summary.

        Raises:
            RewardUnavailableError: the service stopped giving rewards; a checkpoint has been written.
            RunStoppedError: a signal came; a checkpoint has been written.
        """
        await self._loop.pool.ready()
        await self._resume()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with on_first_signal(lambda: loop.call_soon_threadsafe(stop.set), after="this step"):
            if self._before is None and self._held_out:
                await self._evaluate()
            while self._loop.done < self._config.steps and self._stopped is None:
                await self._segment(stop)
        return await self._finish()

    async def _segment(self, stop: asyncio.Event) -> None:
        done = self._loop.done
        every = [n for n in (self._config.checkpoint.every, self._config.eval.every) if n]
        last = min(self._config.steps, *((done // n + 1) * n for n in every))
        try:
            await self._loop.segment(last, self._told, stop)
        except RewardUnavailableError:
            # The rewards of this step are lost, what was learnt before is not.
            await self._save_whole()
            raise
        done = self._loop.done
        if stop.is_set() and done < self._config.steps:
            await self._save_whole()
            raise RunStoppedError(
                f"stopped after step {done} of {self._config.steps}; the same command goes on from there"
            )
        await self._loop.synchronise()
        if self._held_out and self._due(self._config.eval.every):
            await self._evaluate()
        if self._due(self._config.checkpoint.every) and self._stopped is None:
            await self._save()

    def _due(self, every: int) -> bool:
        done = self._loop.done
        return done == self._config.steps or bool(every and done % every == 0)

    def _told(self, row: dict[str, Any]) -> None:
        self._monitor.step(row)
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        for name, rows in ((METRICS, self._monitor.rows), (EVALS, self._monitor.evals)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self._artifact.work.child(name).write_bytes(text.encode())
        self._written = time.monotonic()

    async def _evaluate(self) -> None:
        """Compare the policy with its start on the held-out prompts, and act on what is found."""
        scored = await self._loop.sample_and_score(self._held_out, _EVAL_SEED)
        self._now, self._replies = _evaluation(scored), _first_replies(scored)
        second = None
        if self._second is not None:
            second = _evaluation(await self._loop.score_again(self._held_out, scored, self._second))
        ids = [p.token_ids for p, found in zip(self._held_out, scored, strict=True) for _ in found.samples]
        kl = await self._loop.in_turn(self._learner.kl, ids, [s for found in scored for s in found.samples])
        row = evaluation_row(
            self._loop.done,
            self._now,
            self._before,
            kl=kl,
            second_now=second,
            second_start=self._second_before,
            seed=self._config.seed,
        )
        shown = zip(self._held_out, self._replies, strict=True)
        row["samples"] = [{"prompt": prompt.prompt, **reply} for prompt, reply in islice(shown, _SHOWN)]
        if self._before is None:
            self._before, self._second_before, self._first_replies = self._now, second, self._replies
        for alarm in self._monitor.evaluation(row):
            if alarm.action == "stop":
                self._stopped = alarm.text
            elif alarm.action == "raise_beta":
                self._loop.beta *= self._config.alarms.beta_factor
        self._write()

    async def _save(self) -> None:
        """Write a checkpoint of everything the run needs to go on."""
        if self._loop.done in self._store.steps():
            return
        info = {
            "step": self._loop.done,
            "updates": self._loop.updates,
            "beta": self._loop.beta,
            "monitor": self._monitor.state(),
            "before": None if self._before is None else asdict(self._before),
            "second_before": None if self._second_before is None else asdict(self._second_before),
            "first_replies": self._first_replies,
            "first_pairs": [[asdict(prompt), asdict(pair)] for prompt, pair in self._loop.first_pairs],
        }
        self._write()
        await asyncio.to_thread(self._learner.save_checkpoint, self._loop.done, self._store.place, info)

    async def _save_whole(self) -> None:
        """Write a checkpoint and wait until it is whole: the run ends here."""
        await self._save()
        await asyncio.to_thread(self._learner.wait_checkpoint)

    async def _resume(self) -> None:
        """Go on from the latest checkpoint, if there is one."""
        steps = self._store.steps() if self._artifact.resumed else []
        if not steps:
            return
        info = self._store.info(steps[-1])
        await self._loop.in_turn(self._learner.load_checkpoint, self._store.folder(steps[-1]))
        self._loop.go_on(done=info["step"], updates=info["updates"], beta=info["beta"])
        self._loop.first_pairs = [(_prompt(prompt), _pair(pair)) for prompt, pair in info["first_pairs"]]
        self._monitor.restore(info["monitor"])
        self._before = _read_evaluation(info["before"])
        self._second_before = _read_evaluation(info["second_before"])
        self._first_replies = info["first_replies"]
        logger.info("goes on after step %d", info["step"])

    async def _finish(self) -> dict[str, Any]:
        """Export the policy and sum up."""
        margin = None
        if self._loop.first_pairs:
            ids = [prompt.token_ids for prompt, _ in self._loop.first_pairs]
            pairs = [pair for _, pair in self._loop.first_pairs]
            margin = await self._loop.in_turn(self._learner.margin, ids, pairs)
        await asyncio.to_thread(self._learner.export, self._artifact.work.child(POLICY))
        if self._held_out and self._now is None:
            # A run that had come to its last step and was cut off before its end.
            await self._loop.synchronise()
            await self._evaluate()
        summary = self._monitor.summary(
            stopped=self._stopped,
            before=self._before,
            after=self._now,
            # Policy and reference are the same model before the first step, so the gap starts at exactly 0.
            first_pairs={"margin_before": 0.0, "margin_after": margin} if margin is not None else None,
        )
        self._write()
        # What is being written still would not be gone with the rest of the work directory.
        await asyncio.to_thread(self._learner.wait_checkpoint)
        return {**summary, "samples": self._samples()}

    def _samples(self) -> list[dict[str, Any]]:
        """The first reply to each held-out prompt before and after."""
        rows = zip(self._held_out, self._first_replies, self._replies, strict=True) if self._replies else ()
        return [
            {
                "history": list(prompt.history),
                "prompt": prompt.prompt,
                "before": old["text"],
                "after": new["text"],
                **{f"{key}_before": old[key] for key in ("reward", "length")},
                **{f"{key}_after": new[key] for key in ("reward", "length")},
            }
            for prompt, old, new in rows
        ]


def _evaluation(scored: Sequence[Scored]) -> Evaluation:
    return Evaluation(
        rewards=[[r.score for r in found.group[2]] if found.group is not None else [] for found in scored],
        lengths=[[len(s.token_ids) for s in found.samples] for found in scored],
        finished=[[s.finished for s in found.samples] for found in scored],
    )


def _first_replies(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Of each prompt the first reply that has a reward, else the first one, with its tokens."""
    rows = []
    for found in scored:
        sample, reward = found.samples[0], None
        if found.group is not None and found.group[1]:
            sample, reward = found.group[1][0], found.group[2][0].score
        rows.append({"text": sample.text, "reward": reward, "length": len(sample.token_ids)})
    return rows


def _read_evaluation(found: dict[str, Any] | None) -> Evaluation | None:
    return None if found is None else Evaluation(**found)


def _prompt(found: dict[str, Any]) -> Prompt:
    return Prompt(**{**found, "history": tuple(found["history"]), "token_ids": tuple(found["token_ids"])})


def _pair(found: dict[str, Any]) -> Pair:
    sides = {
        name: Sample(**{**found[name], "token_ids": tuple(found[name]["token_ids"])}) for name in ("chosen", "rejected")
    }
    return Pair(**{**found, **sides})
