"""What the steps of `bench online-dpo` say: rates, and their ratios.

The first two steps of every run and of every engine warm up and are not counted. Nor is the last one: nothing is sampled beside
what it learns.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.stages.bench_online_dpo_trl import TrlResult

Figures = dict[str, Any]
StepT = TypeVar("StepT")

_WARM_UP, _LAST = 2, 1


@dataclass(frozen=True)
class Sampled:
    """What a raw engine did in a step: tokens sampled, and seconds."""

    tokens: int
    seconds: float


def counted(steps: Sequence[StepT]) -> Sequence[StepT]:
    """The steps whose times count."""
    return steps[_WARM_UP : len(steps) - _LAST]


def overlap(alone: Sequence[dict[str, Any]], ahead: Sequence[dict[str, Any]]) -> Figures:
    """What a step takes whose parts overlap, over the slowest of its parts alone.

    Args:
        alone, ahead: metrics of every step with staleness 0 and with staleness 1.

    Raises:
        WildRewardError: see `check_learnt`.
    """
    check_learnt(alone)
    check_learnt(ahead)
    parts = {part: _mean(alone, "seconds", part) for part in ("rollout", "score", "learn")}
    slowest = max(parts, key=parts.__getitem__)
    step_s = _mean(ahead, "seconds", "step")
    return {
        **{f"{part}_alone_s": round(seconds, 3) for part, seconds in parts.items()},
        "slowest_part": slowest,
        "step_s_staleness_0": round(_mean(alone, "seconds", "step"), 3),
        "step_s_staleness_1": round(step_s, 3),
        "sync_s_staleness_0": round(_mean(alone, "seconds", "sync"), 3),
        "sync_s_staleness_1": round(_mean(ahead, "seconds", "sync"), 3),
        **{
            f"idle_{part}_staleness_{staleness}": round(_mean(rows, "idle", part), 3)
            for staleness, rows in enumerate((alone, ahead))
            for part in ("rollout", "reward", "learner")
        },
        "staleness_mean": round(statistics.fmean(row["staleness"] for row in counted(ahead)), 3),
        "overlap_ratio": round(step_s / parts[slowest], 3),
    }


def generation(rows: Sequence[dict[str, Any]], before: Sequence[Sampled], after: Sequence[Sampled]) -> Figures:
    """Tokens a second of a run's rollouts, and of the bare engine before and after it; its own rate is that of both together."""
    seconds = [float(row["seconds"]["rollout"]) for row in counted(rows)]
    tokens = [row["rollout_tokens_per_s"] * s for row, s in zip(counted(rows), seconds, strict=True)]
    first, second = counted(before), counted(after)
    return {
        "rollout_tokens_per_s": round(sum(tokens) / sum(seconds), 1),
        "raw_before_tokens_per_s": round(_rate(first), 1),
        "raw_after_tokens_per_s": round(_rate(second), 1),
        "raw_tokens_per_s": round(_rate([*first, *second]), 1),
    }


def throughput(ways: Mapping[str, Sequence[dict[str, Any]]], size: int) -> Figures:
    """Prompts a second of the fastest run, and what each took.

    Args:
        ways: metrics of every step of each run, by its name.
        size: prompts a step.

    Raises:
        WildRewardError: see `check_learnt`.
    """
    found: Figures = {}
    for name, rows in ways.items():
        check_learnt(rows)
        found[f"prompts_per_s_{name}"] = round(size / _mean(rows, "seconds", "step"), 4)
        found |= {f"{part}_s_{name}": round(_mean(rows, "seconds", part), 3) for part in ("rollout", "learn", "sync")}
        found[f"pairs_per_step_{name}"] = round(statistics.fmean(row["pairs"] for row in counted(rows)), 2)
    fastest = max(ways, key=lambda name: float(found[f"prompts_per_s_{name}"]))
    return {**found, "fastest": fastest, "prompts_per_s": found[f"prompts_per_s_{fastest}"]}


def trl_figures(result: TrlResult, size: int) -> Figures:
    """TRL's prompts a second, over the same steps."""
    step_s = statistics.fmean(counted(result.step_seconds))
    return {
        "trl_version": result.version,
        "trl_step_s": round(step_s, 3),
        "trl_prompts_per_s": round(size / step_s, 4),
    }


def ratios(found: Figures) -> Figures:
    """What the parts say about each other, as far as they were measured."""
    pairs = {
        "generation_ratio": ("rollout_tokens_per_s", "raw_tokens_per_s"),
        "prompts_over_trl": ("prompts_per_s", "trl_prompts_per_s"),
    }
    return {
        name: round(found[above] / found[below], 3)
        for name, (above, below) in pairs.items()
        if above in found and below in found
    }


def check_learnt(rows: Sequence[dict[str, Any]]) -> None:
    """Return if every counted step had a pair.

    Raises:
        WildRewardError: one had none; its time is that of a step that learns nothing.
    """
    for row in counted(rows):
        if not row["pairs"]:
            raise WildRewardError(
                f"step {row['step']} made no pair of its samples and learnt nothing: raise --online-dpo.prompts-per-step"
            )


def _mean(rows: Sequence[dict[str, Any]], group: str, name: str) -> float:
    """The mean of a metric over the counted steps."""
    return statistics.fmean(row[group][name] for row in counted(rows))


def _rate(steps: Sequence[Sampled]) -> float:
    return sum(step.tokens for step in steps) / sum(step.seconds for step in steps)
