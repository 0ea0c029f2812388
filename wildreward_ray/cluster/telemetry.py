"""What the stages tell Prometheus through Ray: every metric of the pipeline, and how the stages' own records become metrics.

The reward service has its own, see `stages/serve_metrics.py`. Ray exports the names below with `ray_` before them. Counters
add up on the node that counted, and stay there when the process has gone; a gauge is gone 20 seconds after its run. Work that is
done again after a loss counts again. What a run did is in its manifest, to the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wildreward_ray.cluster.metric_channel import Channel, Metric, ray_is_up, ray_metric
from wildreward_ray.cluster.run_log import run_id
from wildreward_ray.core.manifest import FunnelStep

KEPT = "kept"

PROGRESS = Metric("Gauge", "wildreward_progress", "what a pass that goes on has done in this run", ("unit",))
PROGRESS_TOTAL = Metric("Gauge", "wildreward_progress_goal", "what it has to do, where that is known", ("unit",))

JUDGED = Metric("Counter", "wildreward_judged_total", "interactions with a verdict", ("judge",))
JUDGE_FAILURES = Metric(
    "Counter", "wildreward_judge_failures_total", "interactions without a verdict", ("judge", "reason")
)
JUDGE_PROMPT_TOKENS = Metric("Counter", "wildreward_judge_prompt_tokens_total", "tokens the judge read", ("judge",))
JUDGE_CACHED_TOKENS = Metric(
    "Counter", "wildreward_judge_cached_tokens_total", "how many of them its prefix cache had already", ("judge",)
)
JUDGE_OUTPUT_TOKENS = Metric("Counter", "wildreward_judge_output_tokens_total", "tokens the judge wrote", ("judge",))
JUDGE_RETRIES = Metric(
    "Counter", "wildreward_judge_retries_total", "requests to a judge's server that were sent again", ("judge",)
)
FUNNEL = Metric(
    "Counter",
    "wildreward_funnel_rows_total",
    "rows of a whole extraction by funnel step: kept, or the reason they were dropped for",
    ("step", "reason"),
)

TRAIN_STEP = Metric("Gauge", "wildreward_train_step", "optimizer steps done")
TRAIN_STEPS = Metric("Gauge", "wildreward_train_steps", "optimizer steps of the whole run")
TRAIN_LOSS = Metric("Gauge", "wildreward_train_loss", "loss of the last step, nats")
TRAIN_LEARNING_RATE = Metric("Gauge", "wildreward_train_learning_rate", "learning rate of the last step")
TRAIN_GRAD_NORM = Metric("Gauge", "wildreward_train_grad_norm", "norm of the last step's gradient before clipping")
TRAIN_WORKERS = Metric("Gauge", "wildreward_train_workers", "workers that took part in the last step")
TRAIN_TOKENS = Metric("Counter", "wildreward_train_tokens_total", "tokens learnt from, without padding")
TRAIN_FAILURES = Metric("Counter", "wildreward_train_worker_failures_total", "workers that failed")

DPO_STEP = Metric("Gauge", "wildreward_dpo_step", "steps done")
DPO_STEPS = Metric("Gauge", "wildreward_dpo_steps", "steps of the whole run")
DPO_REWARD = Metric("Gauge", "wildreward_dpo_reward_mean", "mean reward of the last step's replies")
DPO_KL = Metric("Gauge", "wildreward_dpo_kl", "KL divergence from the reference in the last step, nats a reply")
DPO_LOSS = Metric("Gauge", "wildreward_dpo_loss", "loss of the last step")
DPO_LENGTH = Metric("Gauge", "wildreward_dpo_response_length", "mean length of the last step's replies, tokens")
DPO_STALENESS = Metric(
    "Gauge", "wildreward_dpo_staleness", "updates that the last step's samples were behind the weights they taught"
)
DPO_PAIRS = Metric("Counter", "wildreward_dpo_pairs_total", "preference pairs learnt from")
DPO_SKIPPED = Metric("Counter", "wildreward_dpo_skipped_total", "prompts that gave no pair", ("reason",))
DPO_SECONDS = Metric(
    "Gauge", "wildreward_dpo_seconds", "seconds of the last step by part: rollout, score, learn, sync, step", ("part",)
)
DPO_IDLE = Metric(
    "Gauge", "wildreward_dpo_idle_share", "share of the last step that an actor kind had nothing to do", ("actor",)
)
DPO_TOKENS_PER_S = Metric(
    "Gauge", "wildreward_dpo_tokens_per_second", "tokens a second in the last step: rollout, learn", ("part",)
)
DPO_HELD_OUT_REWARD = Metric("Gauge", "wildreward_dpo_held_out_reward", "mean reward on held-out prompts")
DPO_HELD_OUT_WIN_RATE = Metric(
    "Gauge", "wildreward_dpo_held_out_win_rate", "win rate over the start on held-out prompts"
)
DPO_HELD_OUT_KL = Metric(
    "Gauge", "wildreward_dpo_held_out_kl", "KL divergence from the reference on held-out prompts, nats a reply"
)
DPO_ALARMS = Metric("Counter", "wildreward_dpo_alarms_total", "alarms told", ("kind",))

SCORED = Metric("Counter", "wildreward_responses_scored_total", "responses that evaluate or score gave a reward")
UNSCORED = Metric("Counter", "wildreward_responses_failed_total", "responses that evaluate or score had no reward for")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

_USAGE = {
    "prompt_tokens": JUDGE_PROMPT_TOKENS,
    "cached_tokens": JUDGE_CACHED_TOKENS,
    "output_tokens": JUDGE_OUTPUT_TOKENS,
    "retried": JUDGE_RETRIES,
}
_TRAIN_STEP = {
    "step": TRAIN_STEP,
    "total": TRAIN_STEPS,
    "loss": TRAIN_LOSS,
    "learning_rate": TRAIN_LEARNING_RATE,
    "grad_norm": TRAIN_GRAD_NORM,
    "workers": TRAIN_WORKERS,
}
_DPO_STEP = {
    "step": DPO_STEP,
    "reward_mean": DPO_REWARD,
    "kl": DPO_KL,
    "dpo_loss": DPO_LOSS,
    "response_length": DPO_LENGTH,
    "staleness": DPO_STALENESS,
}
_DPO_HELD_OUT = {"reward_mean": DPO_HELD_OUT_REWARD, "win_rate": DPO_HELD_OUT_WIN_RATE, "kl": DPO_HELD_OUT_KL}


@dataclass(frozen=True)
class Telemetry:
    """The metrics of one stage of one run. May be sent to actors: each process hands over what it was told itself.

    Attributes:
        stage: command that runs, or the pass of it.
        run: see `run_log.run_id`.
    """

    stage: str
    run: str

    def progress(self, unit: str, done: int | None, total: int | None) -> None:
        """A pass over rows has come so far; None: it goes on no longer. `stage` is then the pass: judge, refine, ..."""
        self.set(PROGRESS, done, unit=unit)
        self.set(PROGRESS_TOTAL, None if done is None else total, unit=unit)

    def judged(self, counts: Mapping[str, int], judge: Literal["first", "second"] = "first") -> None:
        """A chunk was judged. `counts`: `judged`, `failed:REASON`, and the fields of `judge_backends.Usage`."""
        self.add(JUDGED, counts["judged"], judge=judge)
        for name, metric in _USAGE.items():
            self.add(metric, counts[name], judge=judge)
        for name, n in counts.items():
            if name.startswith("failed:"):
                self.add(JUDGE_FAILURES, n, judge=judge, reason=name.removeprefix("failed:"))

    def funnel(self, steps: Sequence[FunnelStep]) -> None:
        """An extraction is whole."""
        for step in steps:
            for reason, n in {KEPT: step.rows_out, **step.dropped}.items():
                self.add(FUNNEL, n, step=step.name, reason=reason)

    def train_step(self, letter: Mapping[str, Any]) -> None:
        """A step of training: the fields of `reward.loop.StepRecord`, and `total`, the steps of the run."""
        for name, metric in _TRAIN_STEP.items():
            self.set(metric, letter[name])
        self.add(TRAIN_TOKENS, letter["tokens"])

    def train_worker_failed(self) -> None:
        """A worker was lost or raised."""
        self.add(TRAIN_FAILURES)

    def dpo_step(self, row: Mapping[str, Any], steps: int) -> None:
        """A row of an online DPO run's metrics.jsonl. What it has no number for is not shown."""
        self.set(DPO_STEPS, steps)
        for name, metric in _DPO_STEP.items():
            self.set(metric, row[name])
        self.add(DPO_PAIRS, row["pairs"])
        for reason, n in row["skipped"].items():
            self.add(DPO_SKIPPED, n, reason=reason)
        for part, seconds in row["seconds"].items():
            self.set(DPO_SECONDS, seconds, part=part)
        for actor, share in row["idle"].items():
            self.set(DPO_IDLE, share, actor=actor)
        for part in ("rollout", "learn"):
            self.set(DPO_TOKENS_PER_S, row[f"{part}_tokens_per_s"], part=part)

    def dpo_held_out(self, row: Mapping[str, Any]) -> None:
        """A row of an online DPO run's evals.jsonl."""
        for name, metric in _DPO_HELD_OUT.items():
            self.set(metric, row[name])

    def dpo_alarm(self, kind: str) -> None:
        """An alarm was told."""
        self.add(DPO_ALARMS, kind=kind)

    def responses(self, scored: int, failed: int = 0) -> None:
        """So many responses were given a reward, and so many could not be."""
        self.add(SCORED, scored)
        self.add(UNSCORED, failed)

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Add to a counter. Zero leaves it alone, as Ray takes no zero."""
        if amount:
            channel().add(metric, amount, self._tags(metric, labels))

    def set(self, metric: Metric, value: float | None, **labels: str) -> None:
        """Set a gauge until it is set again or the run ends. None, NaN and infinity take it away."""
        known = value if value is not None and math.isfinite(value) else None
        channel().set(metric, known, self._tags(metric, labels), self.run)

    def _tags(self, metric: Metric, labels: Mapping[str, str]) -> dict[str, str]:
        if tuple(labels) != metric.labels:
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
        named = {"stage": self.stage, "run": self.run, **labels}
        # Ray takes ASCII only.
        return {label: value.encode("ascii", "backslashreplace").decode() for label, value in named.items()}


def telemetry_of(stage: str) -> Telemetry:
    """The metrics of a stage of the run that this process is in."""
    return Telemetry(stage, run_id())


def channel() -> Channel:
    """This process's."""
    return _channel


_channel = Channel(ray_metric, ray_is_up)
